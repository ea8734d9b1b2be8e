// SPDX-License-Identifier: Apache-2.0
// HttpServer: a small HTTP/1.1 server on loopback for tests, whose answers may be wrong on purpose.
#pragma once

#include <sys/socket.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "arcflow/hdfs/loopback_server_testing.h"
#include "arcflow/hdfs/uri.h"

namespace arcflow::hdfs::testing {

struct Request {
  std::string method, path, query, body;  // path decoded
  std::string headers;
  std::string Get(std::string_view key) const { return QueryValue(query, key).value_or(""); }
};

struct Reply {
  int status = 200;
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;
  std::optional<std::uint64_t> announced;      // Content-Length, if not the body's
  std::optional<std::size_t> break_off_after;  // closes the connection after these bytes of body
  std::chrono::milliseconds delay{0};
  bool hang_up = false;  // closes without an answer
};

/// Answers every request with what `handler` returns.
class HttpServer {
 public:
  using Handler = std::function<Reply(const Request&)>;

  explicit HttpServer(Handler handler)
      : handler_(std::move(handler)), server_([this](int fd) { Serve(fd); }) {}

  /// Refuses connections from now on and drops those there are.
  void Stop() { server_.Stop(); }
  int port() const { return server_.port(); }
  std::string authority() const { return "127.0.0.1:" + std::to_string(port()); }
  int connections() const { return server_.connections(); }

 private:
  void Serve(int fd) {
    std::string in;
    Request request;
    while (Receive(fd, &in, &request)) {
      const Reply reply = handler_(request);
      if (reply.delay.count() > 0) Sleep(reply.delay);
      if (reply.hang_up || !Answer(fd, request, reply)) return;
      request = {};
    }
  }
  /// Until the time is over or the server stops.
  void Sleep(std::chrono::milliseconds time) const {
    for (; time.count() > 0 && !server_.stopped(); time -= std::chrono::milliseconds(10)) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }

  static bool Fill(int fd, std::string* in) {
    char buffer[65536];
    const ssize_t n = ::recv(fd, buffer, sizeof buffer, 0);
    if (n <= 0) return false;
    in->append(buffer, static_cast<std::size_t>(n));
    return true;
  }
  static bool Take(int fd, std::string* in, std::size_t n, std::string* out) {
    while (in->size() < n) {
      if (!Fill(fd, in)) return false;
    }
    out->append(*in, 0, n);
    in->erase(0, n);
    return true;
  }
  static bool TakeLine(int fd, std::string* in, std::string* line) {
    std::size_t end = 0;
    while ((end = in->find("\r\n")) == std::string::npos) {
      if (!Fill(fd, in)) return false;
    }
    line->assign(*in, 0, end);
    in->erase(0, end + 2);
    return true;
  }
  static bool Receive(int fd, std::string* in, Request* request) {
    std::string line;
    if (!TakeLine(fd, in, &line)) return false;
    const std::size_t a = line.find(' ');
    const std::size_t b = line.rfind(' ');
    request->method = line.substr(0, a);
    const std::string target = line.substr(a + 1, b - a - 1);
    const std::size_t question = target.find('?');
    request->path = Unescape(target.substr(0, question));
    if (question != std::string::npos) request->query = target.substr(question + 1);
    std::size_t length = 0;
    bool chunked = false;
    while (TakeLine(fd, in, &line) && !line.empty()) {
      request->headers += line + "\n";
      if (line.rfind("Content-Length:", 0) == 0) length = std::stoul(line.substr(15));
      chunked = chunked || line == "Transfer-Encoding: chunked";
    }
    if (!chunked) return Take(fd, in, length, &request->body);
    for (;;) {
      if (!TakeLine(fd, in, &line)) return false;
      const std::size_t n = std::stoul(line, nullptr, 16);
      std::string end;
      if (!Take(fd, in, n, &request->body) || !Take(fd, in, 2, &end)) return false;
      if (n == 0) return true;
    }
  }
  static bool Answer(int fd, const Request&, const Reply& reply) {
    std::string out = "HTTP/1.1 " + std::to_string(reply.status) + " Test\r\nContent-Length: " +
                      std::to_string(reply.announced.value_or(reply.body.size())) + "\r\n";
    for (const auto& [name, value] : reply.headers) out += name + ": " + value + "\r\n";
    out += "\r\n";
    out += reply.body.substr(0, reply.break_off_after.value_or(reply.body.size()));
    for (std::size_t sent = 0; sent < out.size();) {
      const ssize_t n = ::send(fd, out.data() + sent, out.size() - sent, MSG_NOSIGNAL);
      if (n <= 0) return false;
      sent += static_cast<std::size_t>(n);
    }
    return !reply.break_off_after.has_value();
  }

  const Handler handler_;
  LoopbackServer server_;  // last, so that its threads end first
};

}  // namespace arcflow::hdfs::testing
