// SPDX-License-Identifier: Apache-2.0
// Uses one function of several layers of the installed package; fails when a header or library is
// missing from it.
#include <arcflow/base/status.h>
#include <arcflow/columnar/schema.h>
#include <arcflow/feed/reader.h>
#include <arcflow/net/packet.h>

#include <cstdio>
#include <nlohmann/json.hpp>

int main() {
  auto pair = arcflow::net::PacketPair();
  if (!pair.ok()) {
    std::printf("consumer: %s\n", pair.status().ToString().c_str());
    return 1;
  }
  auto sent = arcflow::net::SendPacket(pair->first.get(), {{"op", "hello"}}, {},
                                       arcflow::Deadline::AfterSeconds(5));
  auto got =
      arcflow::net::ReceiveMessage(pair->second.get(), -1, arcflow::Deadline::AfterSeconds(5));
  if (!sent.ok() || !got.ok() || !got->has_value() || (*got)->op != "hello") {
    std::printf("consumer: no packet came through\n");
    return 1;
  }
  auto schema = arcflow::columnar::Schema::FromJson(nlohmann::json::parse(
      R"({"columns": [{"name": "x", "dtype": "float32", "source": "list", "shape": [784]}]})"));
  // No broker behind this descriptor: the reader must say so, not crash.
  arcflow::feed::ReaderOptions options;
  options.feed = "train";
  options.batch_size = 1;
  auto reader = arcflow::feed::Reader::Open(-1, options, arcflow::Deadline::AfterSeconds(1));
  if (!schema.ok() || schema->columns[0].row_bytes() != 784 * 4 || reader.ok()) {
    std::printf("consumer: the installed package behaves oddly\n");
    return 1;
  }
  std::printf("consumer: builds and runs against the installed package\n");
  return 0;
}
