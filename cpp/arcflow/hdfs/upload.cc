// SPDX-License-Identifier: Apache-2.0
// Sending a known body, and one that is still being written.
#include "arcflow/hdfs/upload.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "arcflow/hdfs/answers.h"

namespace arcflow::hdfs {
namespace {

Status Perform(HttpClient* http, const HttpRequest& request) {
  auto response = http->Perform(request);
  if (!response.ok()) return response.status();
  if (response->status >= 200 && response->status < 300) return Status::Ok();
  return ErrorOf(response->status, response->body, response->authenticate)
      .WithContext(request.url.Authority());
}

}  // namespace

Status SendBytes(HttpClient* http, const std::string& method, const HttpUrl& data_node,
                 std::string_view bytes) {
  HttpRequest request;
  request.method = method;
  request.url = data_node;
  request.source_bytes = bytes.size();
  std::size_t sent = 0;
  request.source = [&](std::span<char> out) -> Result<std::size_t> {
    const std::size_t n = std::min(out.size(), bytes.size() - sent);
    std::memcpy(out.data(), bytes.data() + sent, n);
    sent += n;
    return n;
  };
  return Perform(http, request);
}

Upload::Upload(HttpClient* http, std::string method, HttpUrl data_node, std::size_t buffer_bytes)
    : http_(http),
      method_(std::move(method)),
      data_node_(std::move(data_node)),
      limit_(buffer_bytes),
      thread_([this] { Run(); }) {}

Upload::~Upload() {
  {
    const std::lock_guard lock(mutex_);
    if (!ended_) broken_off_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Upload::Run() {
  HttpRequest request;
  request.method = method_;
  request.url = data_node_;
  request.source = [this](std::span<char> out) { return Give(out); };
  Status outcome = Perform(http_, request);
  const std::lock_guard lock(mutex_);
  // An answer before the body's end is no success: the rest was never sent.
  if (outcome.ok() && !ended_) outcome = DataLoss("the DataNode answered before all was sent");
  outcome_ = std::move(outcome);
  done_ = true;
  changed_.notify_all();
}

Result<std::size_t> Upload::Give(std::span<char> out) {
  std::unique_lock lock(mutex_);
  started_ = true;
  changed_.notify_all();
  if (sent_ == sending_.size()) {
    sending_.clear();
    sent_ = 0;
    changed_.wait(lock, [this] { return broken_off_ || ended_ || !filling_.empty(); });
    if (broken_off_) return Cancelled("writing was given up");
    std::swap(sending_, filling_);
    changed_.notify_all();
  }
  const std::size_t n = std::min(out.size(), sending_.size() - sent_);
  // Only this thread touches sending_ outside the swap.
  lock.unlock();
  std::memcpy(out.data(), sending_.data() + sent_, n);
  sent_ += n;
  return n;
}

Status Upload::AwaitStart() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return started_ || done_; });
  return started_ ? Status::Ok() : outcome_;
}

Status Upload::Write(std::string_view bytes) {
  std::unique_lock lock(mutex_);
  while (!bytes.empty()) {
    changed_.wait(lock, [this] { return done_ || filling_.size() < limit_; });
    if (done_) {
      return outcome_.ok() ? DataLoss("the DataNode answered before all was sent") : outcome_;
    }
    const std::size_t n = std::min(bytes.size(), limit_ - filling_.size());
    filling_.append(bytes.substr(0, n));
    bytes.remove_prefix(n);
    changed_.notify_all();
  }
  return Status::Ok();
}

Status Upload::Finish() {
  {
    const std::lock_guard lock(mutex_);
    if (!done_) ended_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
  return outcome_;
}

}  // namespace arcflow::hdfs
