// SPDX-License-Identifier: Apache-2.0
// Connections to DataNodes, and the exchange for one range.
#include "arcflow/hdfs/block_client.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <memory>
#include <random>

#include "arcflow/hdfs/block_protocol.h"
#include "arcflow/hdfs/wire.h"

namespace arcflow::hdfs {
namespace {

using Clock = Deadline::Clock;

constexpr std::size_t kMaxIdle = 64;
/// A DataNode waits 4 s for the next request by default (dfs.datanode.socket.reuse.keepalive).
constexpr std::chrono::seconds kKeepIdle{3};
constexpr std::chrono::seconds kLeaveAlone{60};
/// How soon a cancellation is noticed.
constexpr int kSliceMs = 100;
constexpr std::size_t kMaxLeftAlone = 4096;

std::atomic<std::uint64_t> bytes_read_in_all{0};

std::string ClientName() {
  std::random_device random;
  return "arcflow_" + std::to_string(getpid()) + "_" + std::to_string(random());
}

}  // namespace

/// One request on one connection.
class BlockClient::Transfer {
 public:
  Transfer(int socket, const Options& options, const std::atomic<bool>* cancelled)
      : socket_(socket), options_(options), cancelled_(cancelled) {}

  /// Whether the DataNode has said anything: else it may not speak the protocol at all.
  bool answered() const { return answered_; }

  Status Run(const LocatedBlock& block, const std::string& name, std::uint64_t offset,
             std::span<char> out, std::size_t* done) {
    ARC_TRY(Send(EncodeReadBlock(block, block.token, name, offset, out.size())));
    ARC_ASSIGN(const ReadAnswer answer, ReceiveAnswer());
    if (answer.status != 0) {
      const std::string why = "it refuses (" + std::to_string(answer.status) + "): ";
      return Status(answer.status == kBadBlockToken ? Code::kUnauthenticated : Code::kUnknown,
                    why + answer.message);
    }
    answer_ = answer;
    if (answer.first_offset > offset) return DataLoss("it begins after what was asked for");
    std::uint64_t next = answer.first_offset;
    for (;;) {
      ARC_ASSIGN(const PacketHeader header, ReceiveHeader());
      if (header.data_bytes == 0) {
        if (!header.last) return DataLoss("an empty packet in the middle");
        break;
      }
      if (header.offset != next) return DataLoss("a packet out of order");
      ARC_TRY(ReceiveData(header, offset, out, done));
      next += header.data_bytes;
    }
    if (*done != out.size()) return DataLoss("it sends less than was asked for");
    return Send(EncodeReadDone());
  }

 private:
  /// Waits until the socket can be read or written.
  Status Await(short events) {
    const Deadline stall = Deadline::After(options_.stall_timeout);
    for (;;) {
      if (cancelled_ != nullptr && cancelled_->load(std::memory_order_relaxed)) {
        return Cancelled("reading was ended");
      }
      pollfd p{socket_, events, 0};
      const int n = ::poll(&p, 1, std::min(stall.poll_ms(), kSliceMs));
      if (n > 0) return Status::Ok();
      if (n < 0 && errno != EINTR) return Status::FromErrno(errno, "poll");
      if (stall.expired()) return Unavailable("no byte moved within the time limit");
    }
  }

  Status Send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (n >= 0) {
        bytes.remove_prefix(static_cast<std::size_t>(n));
      } else if (errno == EAGAIN || errno == EINTR) {
        ARC_TRY(Await(POLLOUT));
      } else {
        return Unavailable(std::string("sending: ") + std::strerror(errno));
      }
    }
    return Status::Ok();
  }

  Status Receive(std::span<char> out) {
    while (!out.empty()) {
      const ssize_t n = ::recv(socket_, out.data(), out.size(), MSG_DONTWAIT);
      if (n > 0) {
        answered_ = true;
        out = out.subspan(static_cast<std::size_t>(n));
      } else if (n == 0) {
        return Unavailable("it closed the connection");
      } else if (errno == EAGAIN || errno == EINTR) {
        ARC_TRY(Await(POLLIN));
      } else {
        return Unavailable(std::string("receiving: ") + std::strerror(errno));
      }
    }
    return Status::Ok();
  }

  Result<ReadAnswer> ReceiveAnswer() {
    std::string length;
    std::uint64_t size = 0;
    for (;;) {  // a varint has no length of its own
      char byte = 0;
      ARC_TRY(Receive({&byte, 1}));
      length.push_back(byte);
      if ((byte & 0x80) == 0) break;
      if (length.size() > 5) return DataLoss("a length that has no end");
    }
    WireInput in{length};
    if (!in.Varint(&size) || size > kMaxBlockAnswerBytes) return DataLoss("a length out of bounds");
    std::string message(static_cast<std::size_t>(size), '\0');
    ARC_TRY(Receive(message));
    return ParseReadAnswer(message);
  }

  /// Also receives the checksums, into `sums_`.
  Result<PacketHeader> ReceiveHeader() {
    char lengths[6];
    ARC_TRY(Receive(lengths));
    WireInput in{{lengths, sizeof lengths}};
    std::uint32_t whole = 0;  // of itself, checksums and data
    std::uint16_t header_bytes = 0;
    if (!in.Big32(&whole) || !in.Big16(&header_bytes) || header_bytes > kMaxPacketHeaderBytes ||
        whole < 4 || whole > kMaxPacketBytes) {
      return DataLoss("a packet whose lengths are out of bounds");
    }
    char bytes[kMaxPacketHeaderBytes];
    ARC_TRY(Receive({bytes, header_bytes}));
    ARC_ASSIGN(const PacketHeader header, ParsePacketHeader({bytes, header_bytes}));
    if (header.data_bytes > whole - 4) return DataLoss("a packet shorter than its data");
    const std::size_t chunks =
        (std::size_t{header.data_bytes} + answer_.chunk_bytes - 1) / answer_.chunk_bytes;
    const std::size_t sums = whole - 4 - header.data_bytes;
    if (sums != (answer_.checksum == ChecksumKind::kNull ? 0 : 4 * chunks)) {
      return DataLoss("a packet with another number of checksums than its data has");
    }
    sums_.resize(sums);
    ARC_TRY(Receive(sums_));
    return header;
  }

  /// Into `out` where all of the packet belongs there; else by way of a buffer, because a checksum
  /// stands for bytes before or after those that were asked for.
  Status ReceiveData(const PacketHeader& header, std::uint64_t offset, std::span<char> out,
                     std::size_t* done) {
    const std::uint64_t end = header.offset + header.data_bytes;
    const std::uint64_t wanted = offset + *done;
    const bool inside = header.offset == wanted && end <= offset + out.size();
    std::span<char> to;
    if (inside) {
      to = out.subspan(*done, header.data_bytes);
    } else {
      edge_.resize(header.data_bytes);
      to = edge_;
    }
    ARC_TRY(Receive(to));
    if (!ChecksumsMatch(answer_.checksum, answer_.chunk_bytes, {to.data(), to.size()}, sums_)) {
      return DataLoss("a wrong checksum in the block at " + std::to_string(header.offset));
    }
    if (inside) {
      *done += to.size();
      return Status::Ok();
    }
    if (end <= wanted) return Status::Ok();  // the chunks before the first byte
    if (header.offset > wanted) return DataLoss("a packet after what was asked for");
    const auto skip = static_cast<std::size_t>(wanted - header.offset);
    const std::size_t n = std::min(to.size() - skip, out.size() - *done);
    std::memcpy(out.data() + *done, to.data() + skip, n);
    *done += n;
    return Status::Ok();
  }

  const int socket_;
  const Options& options_;
  const std::atomic<bool>* const cancelled_;
  bool answered_ = false;
  ReadAnswer answer_;
  std::string sums_;
  std::string edge_;
};

BlockClient::BlockClient(const Options& options)
    : options_(options), name_(ClientName()), owner_(getpid()) {}

BlockClient::~BlockClient() = default;

std::uint64_t BlockClient::bytes_read() {
  return bytes_read_in_all.load(std::memory_order_relaxed);  // a counter, nothing hangs on it
}

std::size_t BlockClient::kept_connections() {
  const std::lock_guard lock(mutex_);
  std::size_t n = 0;
  for (const auto& [key, sockets] : idle_) n += sockets.size();
  return n;
}

Fd BlockClient::TakeIdle(const std::string& key) {
  const std::lock_guard lock(mutex_);
  if (owner_ != getpid()) {  // the parent goes on with the connections: ours are only copies
    idle_.clear();
    owner_ = getpid();
  }
  const auto it = idle_.find(key);
  if (it == idle_.end()) return {};
  auto& sockets = it->second;
  while (!sockets.empty()) {
    Idle last = std::move(sockets.back());
    sockets.pop_back();
    if (Clock::now() - last.since > kKeepIdle) {
      sockets.clear();  // those before it are older
      break;
    }
    char byte = 0;  // the DataNode may have closed it
    if (::recv(last.socket.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EAGAIN) {
      return std::move(last.socket);
    }
  }
  return {};
}

void BlockClient::Keep(const std::string& key, Fd socket) {
  const auto now = Clock::now();
  std::size_t kept = 0;
  const std::lock_guard lock(mutex_);
  for (auto it = idle_.begin(); it != idle_.end();) {  // a cluster has many DataNodes
    std::erase_if(it->second, [&](const Idle& one) { return now - one.since > kKeepIdle; });
    kept += it->second.size();
    it = it->second.empty() ? idle_.erase(it) : std::next(it);
  }
  if (kept < kMaxIdle) idle_[key].push_back({std::move(socket), now});
}

bool BlockClient::IsLeftAlone(const std::string& key) {
  const std::lock_guard lock(mutex_);
  const auto it = left_alone_.find(key);
  if (it == left_alone_.end()) return false;
  if (!it->second.expired()) return true;
  left_alone_.erase(it);
  return false;
}

void BlockClient::LeaveAlone(const std::string& key) {
  const std::lock_guard lock(mutex_);
  if (left_alone_.size() >= kMaxLeftAlone) left_alone_.clear();
  left_alone_.insert_or_assign(key, Deadline::After(kLeaveAlone));
}

Result<Fd> BlockClient::Connect(const std::string& host, int port,
                                const std::atomic<bool>* cancelled) const {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int rc = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
      rc != 0) {
    return Unavailable(std::string("no address: ") + ::gai_strerror(rc));
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, &::freeaddrinfo);
  Status last = Unavailable("no address");
  for (const addrinfo* a = found; a != nullptr; a = a->ai_next) {
    Fd socket(::socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!socket.valid()) return Status::FromErrno(errno, "socket");
    const int yes = 1;
    (void)::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    int error = 0;
    if (::connect(socket.get(), a->ai_addr, a->ai_addrlen) != 0) {
      error = errno;
      const Deadline deadline = Deadline::After(options_.direct_connect_timeout);
      while (error == EINPROGRESS && !deadline.expired()) {
        if (cancelled != nullptr && cancelled->load(std::memory_order_relaxed)) {
          return Cancelled("reading was ended");
        }
        pollfd p{socket.get(), POLLOUT, 0};
        if (::poll(&p, 1, std::min(deadline.poll_ms(), kSliceMs)) <= 0) continue;
        socklen_t size = sizeof error;
        (void)::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &size);
        break;
      }
    }
    if (error == 0) return socket;
    last = Unavailable(std::string("connecting: ") + std::strerror(error));
  }
  return last;
}

Status BlockClient::Read(const LocatedBlock& block, const std::string& host, int port,
                         std::uint64_t offset, std::span<char> out, std::size_t* done,
                         const std::atomic<bool>* cancelled) {
  const std::string key = host + ":" + std::to_string(port);
  if (IsLeftAlone(key)) return FailedPrecondition(key + " is left alone for a while");
  for (bool try_kept = true;; try_kept = false) {
    Fd socket = try_kept ? TakeIdle(key) : Fd();
    const bool kept = socket.valid();
    if (!kept) {
      auto fresh = Connect(host, port, cancelled);
      if (!fresh.ok()) {
        if (fresh.status().code() == Code::kUnavailable) LeaveAlone(key);
        return fresh.status().WithContext(key);
      }
      socket = std::move(*fresh);
    }
    Transfer transfer(socket.get(), options_, cancelled);
    std::size_t got = 0;
    const Status status = transfer.Run(block, name_, offset + *done, out.subspan(*done), &got);
    *done += got;
    bytes_read_in_all.fetch_add(got, std::memory_order_relaxed);
    if (status.ok()) Keep(key, std::move(socket));
    if (*done == out.size()) return Status::Ok();  // all is here and checked
    const bool silent = !transfer.answered() && status.code() == Code::kUnavailable;
    if (kept && silent) continue;  // closed by the DataNode in the moment when it was taken
    if (silent) LeaveAlone(key);   // it asks for SASL or encryption, or stands still
    return status.WithContext(key);
  }
}

}  // namespace arcflow::hdfs
