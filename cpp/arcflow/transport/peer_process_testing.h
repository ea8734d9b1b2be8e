// SPDX-License-Identifier: Apache-2.0
// PeerProcess: a second process with a context of its own, for tests to talk to, stop and kill.
#pragma once

#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "arcflow/transport/context.h"
#include "arcflow/transport/pattern_testing.h"
#include "arcflow/transport/wire.h"

namespace arcflow::transport {

/// Channels that the peer listens to.
inline constexpr Channel kCountChannel = 1;   // counts, and checks that numbers rise
inline constexpr Channel kEchoChannel = 2;    // sent back on kEchoChannel
inline constexpr Channel kVerifyChannel = 3;  // "region offset size seed": checked when it comes

/// The other process's side of the conversation. Single-threaded but for its context.
class PeerServer {
 public:
  PeerServer(int socket, const ContextOptions& options) : socket_(socket), options_(options) {}

  void Run() {
    auto context = Context::Create(options_);
    if (!context.ok()) {
      Reply("!" + context.status().ToString());
      return;
    }
    context_ = std::move(*context);
    SetHandlers();
    Reply(context_->address());
    for (;;) {
      std::vector<char> bytes(1 << 16);
      const ssize_t n = ::recv(socket_, bytes.data(), bytes.size(), 0);
      if (n <= 0) break;
      const std::string request(bytes.data(), static_cast<std::size_t>(n));
      const std::size_t end = request.find('\n');
      std::istringstream words(request.substr(0, end));
      if (!Serve(words, end == std::string::npos ? "" : request.substr(end + 1))) break;
    }
    StopHammer();
    context_.reset();
  }

 private:
  struct Memory {
    std::vector<std::byte> bytes;
    Region region;
  };

  /// Handlers ask on the transport's threads while Serve() adds.
  Memory& MemoryOf(std::uint64_t index) {
    std::lock_guard lock(mutex_);
    return *memory_.at(index);
  }

  void Reply(const std::string& text) { ::send(socket_, text.data(), text.size(), MSG_NOSIGNAL); }

  void SetHandlers() {
    context_->Handle(kCountChannel, [this](const auto&, std::span<const std::byte> bytes) {
      std::uint64_t number = 0;
      if (bytes.size() >= sizeof(number)) std::memcpy(&number, bytes.data(), sizeof(number));
      if (number != counted_) in_order_ = false;
      counted_ = counted_ + 1;
    });
    context_->Handle(kEchoChannel, [](const auto& from, std::span<const std::byte> bytes) {
      (void)from->Send(kEchoChannel, bytes);
    });
    context_->Handle(kVerifyChannel, [this](const auto&, std::span<const std::byte> bytes) {
      std::istringstream words(
          std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
      std::uint64_t index = 0, offset = 0, size = 0, seed = 0;
      words >> index >> offset >> size >> seed;
      const std::span<std::byte> memory(MemoryOf(index).bytes);
      if (PatternEnd(memory.subspan(offset, size), seed) == size) {
        verified_ = verified_ + 1;
      } else {
        torn_ = torn_ + 1;
      }
    });
  }

  bool Serve(std::istringstream& words, const std::string& binary) {
    std::string verb;
    std::uint64_t a = 0, b = 0, c = 0, d = 0;
    words >> verb >> a >> b >> c >> d;
    if (verb == "exit") return false;
    if (verb == "region") {  // size, access, seed
      auto memory = std::make_unique<Memory>();
      memory->bytes.resize(a);
      FillPattern(memory->bytes, c);
      auto region = context_->Register(memory->bytes, static_cast<Access>(b));
      if (!region.ok()) return Reply("!" + region.status().ToString()), true;
      memory->region = std::move(*region);
      const std::string remote = memory->region.remote().Serialize();
      {
        std::lock_guard lock(mutex_);
        memory_.push_back(std::move(memory));
      }
      Reply(remote);               // last: a notice about this memory may come at once
    } else if (verb == "check") {  // index, offset, size, seed
      const std::span<std::byte> bytes(MemoryOf(a).bytes);
      Reply(std::to_string(PatternEnd(ReadAsTheKernelSees(bytes.subspan(b, c)), d)));
    } else if (verb == "deregister") {
      MemoryOf(a).region.Deregister();
      Reply("ok");
    } else if (verb == "counts") {
      Reply(std::to_string(counted_) + (in_order_ ? " in order " : " out of order ") +
            std::to_string(verified_) + " verified " + std::to_string(torn_) + " torn");
    } else if (verb == "hammer") {  // writes into regions of the parent until told otherwise
      StartHammer(binary);
      Reply("ok");
    } else if (verb == "target") {  // the region to hammer
      {
        std::lock_guard lock(mutex_);
        target_ = binary;
      }
      Reply("ok");
    } else if (verb == "rest") {
      StopHammer();
      Reply(std::to_string(hammered_));
    } else if (verb == "leave") {  // closes its endpoints to `binary`
      Reply(Leave(binary));
    } else {
      Reply("?");
    }
    return true;
  }

  /// All of them: one that the other side has closed already may not have noticed yet.
  std::string Leave(const std::string& address) {
    const auto parsed = Address::Parse(address);
    if (!parsed.ok()) return parsed.status().ToString();
    int closed = 0;
    for (; const auto endpoint = context_->Find(parsed->node); ++closed) endpoint->Close();
    return std::to_string(closed) + " closed";
  }

  void StartHammer(const std::string& address) {
    hammering_ = true;
    hammer_ = std::thread([this, address] {
      auto endpoint = context_->Connect(address, Deadline::AfterSeconds(30));
      std::vector<std::byte> source(std::size_t{3} << 20);
      FillPattern(source, 99);
      // At least once, however late this thread gets to run.
      for (bool once = false; endpoint.ok() && (hammering_ || !once);) {
        std::string text;
        {
          std::lock_guard lock(mutex_);
          text = target_;
        }
        auto region = RemoteRegion::Parse(text);
        if (!region.ok()) {
          if (!hammering_) break;
          std::this_thread::yield();
          continue;
        }
        PutOptions options;
        options.deadline = Deadline::AfterSeconds(60);
        const std::size_t n = std::min<std::uint64_t>(source.size(), region->size_bytes);
        (void)(*endpoint)->PutAndWait({source.data(), n}, *region, 0, options);
        hammered_ = hammered_ + 1;
        once = true;
      }
    });
  }
  void StopHammer() {
    hammering_ = false;
    if (hammer_.joinable()) hammer_.join();
  }

  const int socket_;
  const ContextOptions options_;
  std::unique_ptr<Context> context_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Memory>> memory_;  // under mutex_; what it points to stays
  std::atomic<std::uint64_t> counted_{0}, verified_{0}, torn_{0}, hammered_{0};
  std::atomic<bool> in_order_{true}, hammering_{false};
  std::string target_;  // under mutex_
  std::thread hammer_;
};

/// Forks before this process has threads, so make it before any Context. Killed and reaped at the
/// latest by the destructor; the child dies with its parent.
class PeerProcess {
 public:
  explicit PeerProcess(const ContextOptions& options) {
    int sockets[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) != 0) std::abort();
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::close(sockets[0]);
      PeerServer(sockets[1], options).Run();
      std::fflush(nullptr);
      ::_exit(0);
    }
    ::close(sockets[1]);
    socket_ = sockets[0];
  }
  ~PeerProcess() {
    Kill();
    ::close(socket_);
  }
  PeerProcess(const PeerProcess&) = delete;

  /// Waits for its context; "" and a message in error() when it has none.
  const std::string& address() {
    if (address_.empty()) address_ = Receive();
    return address_;
  }
  std::string Call(const std::string& request, const std::string& binary = "") {
    (void)address();
    const std::string whole = binary.empty() ? request : request + "\n" + binary;
    ::send(socket_, whole.data(), whole.size(), MSG_NOSIGNAL);
    return Receive();
  }
  RemoteRegion MakeRegion(std::size_t size, Access access = Access::kReadWrite,
                          std::uint64_t seed = 0) {
    auto region = RemoteRegion::Parse(Call("region " + std::to_string(size) + " " +
                                           std::to_string(static_cast<int>(access)) + " " +
                                           std::to_string(seed)));
    return region.ok() ? *region : RemoteRegion{};
  }
  void Stop() {
    ::kill(pid_, SIGSTOP);
    int status = 0;
    ::waitpid(pid_, &status, WUNTRACED);
  }
  void Continue() { ::kill(pid_, SIGCONT); }
  void Kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
  pid_t pid() const { return pid_; }

 private:
  std::string Receive() {
    std::vector<char> bytes(1 << 16);
    const ssize_t n = ::recv(socket_, bytes.data(), bytes.size(), 0);
    return n <= 0 ? "" : std::string(bytes.data(), static_cast<std::size_t>(n));
  }

  pid_t pid_ = 0;
  int socket_ = -1;
  std::string address_;
};

}  // namespace arcflow::transport
