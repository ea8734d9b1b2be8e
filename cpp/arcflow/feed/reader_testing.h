// SPDX-License-Identifier: Apache-2.0
// What tests of Reader share: a node with a fake agent and a writer, and expectations of the next
// batch.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "arcflow/feed/fake_agent_testing.h"
#include "arcflow/feed/reader.h"
#include "arcflow/feed/rows_testing.h"
#include "arcflow/feed/writer.h"

namespace arcflow::feed::testing {

inline Deadline Soon() { return Deadline::AfterSeconds(20); }

/// An agent, a writer of 72-byte rows in segments of 64 rows, and readers.
struct Node {
  explicit Node(const columnar::Schema& s = Dense(), std::size_t max_leases = 1000,
                std::size_t segment_bytes = 72 * 100)
      : schema(s), agent(s, max_leases), writer({"train", s, segment_bytes}, agent) {}

  void Write(std::size_t rows) {
    const bool dense = schema == Dense();
    const auto batch = dense ? DenseBatch(written, rows) : EveryTypeBatch(written, rows);
    const Status status = writer.Append(batch->type, batch->array, Soon());
    EXPECT_TRUE(status.ok()) << status.ToString();
    written += rows;
  }
  void End() {
    EXPECT_TRUE(writer.Finish().ok());
    agent.End();
  }
  std::unique_ptr<Reader> Open(std::size_t batch, Remainder remainder = Remainder::kPad,
                               std::shared_ptr<CounterPage> counters = nullptr) {
    auto reader =
        Reader::Open(agent.broker_fd(), {"train", batch, remainder, std::move(counters)}, Soon());
    EXPECT_TRUE(reader.ok()) << reader.status().ToString();
    return std::move(*reader);
  }
  ~Node() {
    if (!lies) {
      EXPECT_THAT(agent.complaints(), ::testing::IsEmpty());
    }
  }

  columnar::Schema schema;
  FakeAgent agent;
  Writer writer;
  std::uint64_t written = 0;
  bool lies = false;  // the agent: it may then get answers that it did not expect
};

inline Batch MustNext(Reader& reader) {
  Result<std::optional<Batch>> batch = reader.Next(Soon());
  EXPECT_TRUE(batch.ok()) << batch.status().ToString();
  if (!batch.ok() || !*batch) {
    ADD_FAILURE() << "no batch at step " << reader.position();
    return {};
  }
  return std::move(**batch);
}

inline void ExpectEnd(Reader& reader) {
  Result<std::optional<Batch>> batch = reader.Next(Soon());
  ASSERT_TRUE(batch.ok()) << batch.status().ToString();
  EXPECT_FALSE(batch->has_value());
}

inline void ExpectError(Reader& reader, Code code, const std::string& part) {
  Result<std::optional<Batch>> batch = reader.Next(Soon());
  ASSERT_FALSE(batch.ok());
  EXPECT_EQ(batch.status().code(), code) << batch.status().ToString();
  EXPECT_THAT(std::string(batch.status().message()), ::testing::HasSubstr(part));
}

/// Waits until `condition`, which another thread makes true.
template <typename F>
void Eventually(F condition) {
  const Deadline deadline = Soon();
  while (!condition()) {
    ASSERT_FALSE(deadline.expired()) << "waited in vain";
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace arcflow::feed::testing
