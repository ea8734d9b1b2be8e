// SPDX-License-Identifier: Apache-2.0
// TransferServer: a DataNode's port for blocks on loopback, whose answers may be wrong on purpose.
#pragma once

#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "arcflow/hdfs/checksum.h"
#include "arcflow/hdfs/loopback_server_testing.h"
#include "arcflow/hdfs/wire.h"

namespace arcflow::hdfs::testing {

/// Sends parts of blocks as Hadoop's BlockSender does: whole chunks, each with its checksum.
class TransferServer {
 public:
  /// How the next answers are wrong; all are right by default.
  struct Fault {
    bool hang_up = false;  // before any answer, as a DataNode that wants SASL does
    int status = 0;
    bool bad_checksum = false;                   // in the last packet with data
    std::optional<std::size_t> break_off_after;  // packets
    bool skip_a_packet = false;
    bool odd_numbers = false;  // lengths that no packet has
    bool close_after = false;  // the connection, after a whole answer
  };
  /// Bytes of a block; nothing when there is no such block or the token is not right.
  using Content = std::function<std::optional<std::string>(std::uint64_t id)>;

  explicit TransferServer(Content content, ChecksumKind kind = ChecksumKind::kCrc32c)
      : content_(std::move(content)), kind_(kind), server_([this](int fd) { Serve(fd); }) {}

  void SetFault(const Fault& fault) {
    const std::lock_guard lock(mutex_);
    fault_ = fault;
  }
  void Stop() { server_.Stop(); }
  void DropConnections() { server_.DropConnections(); }
  int port() const { return server_.port(); }
  int connections() const { return server_.connections(); }
  int requests() const { return requests_; }
  /// Of the last request's token.
  std::string identifier() {
    const std::lock_guard lock(mutex_);
    return identifier_;
  }

 private:
  static constexpr std::size_t kChunk = 512;
  static constexpr std::size_t kPacket = 8 * kChunk;

  struct Wanted {
    std::uint64_t id = 0;
    std::uint64_t offset = 0;
    std::uint64_t length = 0;
    std::string identifier;
  };

  static bool Take(int fd, std::size_t n, std::string* out) {
    out->assign(n, '\0');
    for (std::size_t got = 0; got < n;) {
      const ssize_t more = ::recv(fd, out->data() + got, n - got, 0);
      if (more <= 0) return false;
      got += static_cast<std::size_t>(more);
    }
    return true;
  }
  static bool Give(int fd, std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      bytes.remove_prefix(static_cast<std::size_t>(n));
    }
    return true;
  }
  /// A message after its length as varint.
  static bool TakeMessage(int fd, std::string* out) {
    std::uint64_t size = 0;
    std::string byte;
    for (int shift = 0;; shift += 7) {
      if (!Take(fd, 1, &byte)) return false;
      size |= static_cast<std::uint64_t>(byte[0] & 0x7f) << shift;
      if ((byte[0] & 0x80) == 0) break;
    }
    return Take(fd, size, out);
  }
  static std::string_view Part(std::string_view message, std::uint64_t id) {
    WireInput in{message};
    while (const auto field = NextField(&in)) {
      if (field->id == id) return field->bytes;
    }
    return {};
  }
  static std::uint64_t Number(std::string_view message, std::uint64_t id) {
    WireInput in{message};
    while (const auto field = NextField(&in)) {
      if (field->id == id) return field->number;
    }
    return 0;
  }
  static void AppendBig(std::uint64_t n, int bytes, std::string* out) {
    for (int i = bytes - 1; i >= 0; --i) out->push_back(static_cast<char>(n >> (8 * i) & 0xff));
  }
  static void AppendLittle(std::uint64_t n, int bytes, std::string* out) {
    for (int i = 0; i < bytes; ++i) out->push_back(static_cast<char>(n >> (8 * i) & 0xff));
  }

  void Serve(int fd) {
    std::string head;
    std::string message;
    while (Take(fd, 3, &head) && head[1] == 28 && head[2] == 81 && TakeMessage(fd, &message)) {
      ++requests_;
      const std::string_view base = Part(Part(message, 1), 1);
      Wanted wanted{Number(Part(base, 1), 2), Number(message, 2), Number(message, 3),
                    std::string(Part(Part(base, 2), 1))};
      Fault fault;
      {
        const std::lock_guard lock(mutex_);
        fault = fault_;
        identifier_ = wanted.identifier;
      }
      if (fault.hang_up || !Answer(fd, wanted, fault) || fault.close_after) return;
      if (!TakeMessage(fd, &message) || Number(message, 1) != 6) return;  // CHECKSUM_OK
    }
  }

  bool Answer(int fd, const Wanted& wanted, const Fault& fault) {
    const auto block = content_(wanted.id);
    std::string answer;
    const int status = fault.status != 0 ? fault.status : block ? 0 : 1;
    const std::uint64_t begin = wanted.offset / kChunk * kChunk;
    AppendNumberField(1, static_cast<std::uint64_t>(status), &answer);
    if (status != 0) {
      AppendBytesField(5, "no such block here", &answer);
    } else {
      std::string checksum;
      AppendNumberField(1, static_cast<std::uint64_t>(kind_), &checksum);
      AppendNumberField(2, kChunk, &checksum);
      std::string info;
      AppendBytesField(1, checksum, &info);
      AppendNumberField(2, begin, &info);
      AppendBytesField(4, info, &answer);
    }
    std::string out;
    AppendVarint(answer.size(), &out);
    if (!Give(fd, out + answer) || status != 0) return false;
    return SendPackets(fd, *block, begin, wanted, fault);
  }

  bool SendPackets(int fd, const std::string& block, std::uint64_t begin, const Wanted& wanted,
                   const Fault& fault) {
    const std::uint64_t last = wanted.offset + wanted.length;
    const std::uint64_t end =
        std::min<std::uint64_t>(block.size(), (last + kChunk - 1) / kChunk * kChunk);
    std::uint64_t number = 0;
    for (std::uint64_t at = begin; at < end; ++number) {
      const std::size_t n = static_cast<std::size_t>(std::min<std::uint64_t>(kPacket, end - at));
      const bool is_last = at + n == end;
      if (fault.break_off_after && number == *fault.break_off_after) return false;
      if (!(fault.skip_a_packet && number == 1) &&
          !SendPacket(fd, at, number, block.substr(at, n), fault, is_last)) {
        return false;
      }
      at += n;
    }
    return SendPacket(fd, end, number, "", fault, false);
  }

  bool SendPacket(int fd, std::uint64_t offset, std::uint64_t number, std::string data,
                  const Fault& fault, bool is_last) {
    std::string sums;
    for (std::size_t at = 0; at < data.size() && kind_ != ChecksumKind::kNull; at += kChunk) {
      AppendBig(Checksum(kind_, std::string_view(data).substr(at, kChunk)), 4, &sums);
    }
    if (is_last && fault.bad_checksum) data.back() = static_cast<char>(data.back() ^ 1);
    std::string header;
    header.push_back(0x09);
    AppendLittle(offset, 8, &header);
    header.push_back(0x11);
    AppendLittle(number, 8, &header);
    AppendNumberField(3, data.empty() ? 1 : 0, &header);
    header.push_back(0x25);
    AppendLittle(data.size(), 4, &header);
    std::string out;
    AppendBig(fault.odd_numbers ? 0x7fffffff : 4 + sums.size() + data.size(), 4, &out);
    AppendBig(header.size(), 2, &out);
    return Give(fd, out + header + sums + data);
  }

  const Content content_;
  const ChecksumKind kind_;
  std::mutex mutex_;
  Fault fault_;
  std::string identifier_;
  std::atomic<int> requests_{0};
  LoopbackServer server_;  // last, so that its threads end first
};

}  // namespace arcflow::hdfs::testing
