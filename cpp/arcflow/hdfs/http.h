// SPDX-License-Identifier: Apache-2.0
// HttpClient: one request, one answer, over connections that are kept; redirects are not followed.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "arcflow/base/deadline.h"
#include "arcflow/base/status.h"
#include "arcflow/hdfs/options.h"
#include "arcflow/hdfs/uri.h"

namespace arcflow::hdfs {

struct HttpResponse {
  int status = 0;
  std::string body;
  std::optional<std::uint64_t> content_length;
  std::string content_range;
  std::string content_type;
  std::string location;
  std::string authenticate;
};

/// What is sent. The callbacks run in the thread that called Perform.
struct HttpRequest {
  std::string method = "GET";
  HttpUrl url;
  /// Authenticate by SPNEGO if Options::kerberos.
  bool may_negotiate = false;
  /// Takes the body of a 2xx answer; an error ends the transfer and is returned. Without it the
  /// body lands in HttpResponse::body, up to `max_body_bytes`.
  std::function<Status(std::span<const char>)> sink;
  /// Sees the headers of a 2xx answer before the first byte for `sink`; an error ends the transfer
  /// and is returned.
  std::function<Status(const HttpResponse&)> check;
  /// Gives the body to send: fills the span, returns how much; 0 is the end; an error ends the
  /// transfer and is returned.
  std::function<Result<std::size_t>(std::span<char>)> source;
  /// Size of the body if known; else it is sent in chunks.
  std::optional<std::uint64_t> source_bytes;
  std::size_t max_body_bytes = std::size_t{64} << 20;
  Deadline deadline = Deadline::Infinite();
  /// Ends the transfer with Cancelled when it becomes true.
  const std::atomic<bool>* cancelled = nullptr;
};

/// Speaks HTTP/1.1 with libcurl. Threads: any; each call waits. Keeps idle connections, and drops
/// them in a child after fork.
class HttpClient {
 public:
  /// Errors: Unavailable when there is no libcurl.
  static Result<std::unique_ptr<HttpClient>> Make(const Options& options);
  ~HttpClient();

  /// Returns whatever the server answers, 4xx and 5xx too.
  /// Errors: Unavailable when it cannot be reached, breaks off or stalls; DataLoss when the body
  /// ends before its announced length; DeadlineExceeded; Cancelled; ResourceExhausted when a body
  /// is over its bound; what the callbacks return.
  Result<HttpResponse> Perform(const HttpRequest& request);

 private:
  struct Impl;
  explicit HttpClient(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace arcflow::hdfs
