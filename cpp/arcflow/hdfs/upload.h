// SPDX-License-Identifier: Apache-2.0
// Upload: the second step of CREATE and APPEND, bytes to a DataNode.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>

#include "arcflow/base/status.h"
#include "arcflow/hdfs/http.h"

namespace arcflow::hdfs {

/// Sends `bytes` in one request. Errors: as HttpClient, and ErrorOf for what the DataNode answers.
Status SendBytes(HttpClient* http, const std::string& method, const HttpUrl& data_node,
                 std::string_view bytes);

/// A request whose body grows while it is sent, by a thread of its own. Memory is bounded: Write
/// waits while two buffers are full. Threads: one writer.
class Upload {
 public:
  /// `http` must live longer.
  Upload(HttpClient* http, std::string method, HttpUrl data_node, std::size_t buffer_bytes);
  /// Without Finish: breaks the request off.
  ~Upload();

  /// Waits until the DataNode takes bytes. Errors: what ended the request before it did; then no
  /// byte has been sent.
  Status AwaitStart();
  /// Errors: what ended the request early; it stays so.
  Status Write(std::string_view bytes);
  /// Ends the body and waits for the DataNode's answer.
  Status Finish();

 private:
  void Run();
  Result<std::size_t> Give(std::span<char> out);

  HttpClient* const http_;
  const std::string method_;
  const HttpUrl data_node_;
  const std::size_t limit_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::string filling_;   // by Write
  std::string sending_;   // by Give
  std::size_t sent_ = 0;  // of sending_
  bool started_ = false;
  bool ended_ = false;
  bool broken_off_ = false;
  bool done_ = false;
  Status outcome_;
  std::thread thread_;
};

}  // namespace arcflow::hdfs
