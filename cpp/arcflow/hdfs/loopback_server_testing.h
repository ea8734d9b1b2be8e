// SPDX-License-Identifier: Apache-2.0
// LoopbackServer: takes connections on loopback, each in a thread of its own, for tests.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <atomic>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "arcflow/base/fd.h"

namespace arcflow::hdfs::testing {

/// Calls `serve` with each connection, which it closes afterwards. All threads end with it.
class LoopbackServer {
 public:
  explicit LoopbackServer(std::function<void(int)> serve) : serve_(std::move(serve)) {
    listener_ = Fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    auto* plain = reinterpret_cast<sockaddr*>(&address);
    if (::bind(listener_.get(), plain, size) != 0 || ::listen(listener_.get(), 64) != 0 ||
        ::getsockname(listener_.get(), plain, &size) != 0) {
      std::abort();
    }
    port_ = ntohs(address.sin_port);
    acceptor_ = std::thread([this] { Accept(); });
  }
  ~LoopbackServer() { Stop(); }

  /// Refuses connections from now on and drops those there are.
  void Stop() {
    if (stopped_.exchange(true)) return;
    ::shutdown(listener_.get(), SHUT_RDWR);
    acceptor_.join();
    DropConnections();
    for (std::thread& thread : threads_) thread.join();
    listener_.reset();
  }
  /// Ends the connections there are; new ones are taken.
  void DropConnections() {
    const std::lock_guard lock(mutex_);
    for (const int fd : open_) ::shutdown(fd, SHUT_RDWR);
  }
  int port() const { return port_; }
  int connections() const { return connections_; }
  bool stopped() const { return stopped_; }

 private:
  void Accept() {
    for (;;) {
      const int fd = ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0) return;
      ++connections_;
      const int yes = 1;  // answers are written in several pieces
      (void)::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
      const std::lock_guard lock(mutex_);
      if (stopped_) {
        ::close(fd);
        return;
      }
      open_.push_back(fd);
      threads_.emplace_back([this, fd] {
        serve_(fd);
        const std::lock_guard guard(mutex_);
        std::erase(open_, fd);
        ::close(fd);
      });
    }
  }

  const std::function<void(int)> serve_;
  Fd listener_;
  int port_ = 0;
  std::atomic<bool> stopped_{false};
  std::atomic<int> connections_{0};
  std::mutex mutex_;
  std::vector<int> open_;
  std::vector<std::thread> threads_;
  std::thread acceptor_;
};

}  // namespace arcflow::hdfs::testing
