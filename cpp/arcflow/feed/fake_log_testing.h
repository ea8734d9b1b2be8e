// SPDX-License-Identifier: Apache-2.0
// FakeLog: grants memory to a writer of a test and keeps what it publishes, without any process.
#pragma once

#include <fcntl.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arcflow/base/fd.h"
#include "arcflow/feed/writer.h"

namespace arcflow::feed::testing {

/// Keeps every row for ever, unless `max_buffers` is set: then the memory of closed segments
/// without leases whose rows some reader has passed is granted again, and Acquire waits when there
/// is none. Threads: any; everything is guarded by one mutex.
class FakeLog : public SegmentSource {
 public:
  struct Segment {
    std::uint64_t first_row = 0;
    std::size_t rows = 0;
    bool closed = false;
    std::uint64_t buffer = 0;
    bool gone = false;
    int leases = 0;
    std::uint64_t end() const { return first_row + rows; }
  };

  void SetMaxBuffers(std::size_t n) {
    Change([&] { max_buffers_ = n; });
  }
  void RefuseMore() {
    Change([&] { refuse_ = Cancelled("the node wants no more rows"); });
  }
  void Refuse(Status why) {
    Change([&] { refuse_ = std::move(why); });
  }
  void FailPublish(Status why) {
    Change([&] { publish_error_ = std::move(why); });
  }
  void End() {
    Change([&] { ended_ = true; });
  }
  std::vector<Segment> segments() {
    const std::lock_guard lock(mutex_);
    return segments_;
  }
  int leases() {
    const std::lock_guard lock(mutex_);
    int n = 0;
    for (const Segment& s : segments_) n += s.leases;
    return n;
  }
  std::size_t buffers() {
    const std::lock_guard lock(mutex_);
    return memory_.size();
  }
  Result<Grant> Acquire(const std::string&, std::size_t min_bytes, Deadline deadline) override {
    std::unique_lock lock(mutex_);
    for (;;) {
      if (!refuse_.ok()) return refuse_;
      if (const auto buffer = TakeFree(min_bytes))
        return Grant{*buffer, sizes_[*buffer], false, {}};
      if (max_buffers_ == 0 || sizes_.size() < max_buffers_) {
        const std::uint64_t id = next_buffer_++;
        sizes_[id] = min_bytes;
        return Grant{id, min_bytes, true, {}};
      }
      if (deadline.expired()) return DeadlineExceeded("no memory within the deadline");
      changed_.wait_for(lock, std::chrono::milliseconds(5));
    }
  }

  Status Publish(const std::string&, const Grant& grant, std::size_t rows, bool closed,
                 int fd) override {
    {
      const std::lock_guard lock(mutex_);
      if (!publish_error_.ok()) return publish_error_;
      if (fd >= 0) memory_[grant.buffer] = Fd(::fcntl(fd, F_DUPFD_CLOEXEC, 3));
      if (segments_.empty() || segments_.back().closed) {
        segments_.push_back({TotalRows(), 0, false, grant.buffer, false, 0});
      }
      Segment& last = segments_.back();
      if (last.buffer != grant.buffer || rows < last.rows)
        return Internal("publish of another segment");
      last.rows = rows;
      last.closed = closed;
    }
    Wake();
    return Status::Ok();
  }

 protected:
  template <typename F>
  void Change(F change) {
    {
      const std::lock_guard lock(mutex_);
      change();
    }
    Wake();
  }
  /// Something changed; not called under the mutex.
  virtual void Wake() = 0;
  std::uint64_t TotalRows() const { return segments_.empty() ? 0 : segments_.back().end(); }

  std::optional<std::uint64_t> TakeFree(std::size_t min_bytes) {
    if (max_buffers_ == 0) return std::nullopt;
    for (Segment& s : segments_) {
      if (s.gone || !s.closed || s.leases > 0 || s.end() > passed_ || sizes_[s.buffer] < min_bytes)
        continue;
      s.gone = true;
      return s.buffer;
    }
    return std::nullopt;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  // By mutex_:
  bool ended_ = false;
  std::size_t max_buffers_ = 0;
  std::uint64_t passed_ = 0;  // the row that some reader has read up to
  Status refuse_;
  Status publish_error_;
  std::uint64_t next_buffer_ = 1;
  std::map<std::uint64_t, std::size_t> sizes_;
  std::map<std::uint64_t, Fd> memory_;
  std::vector<Segment> segments_;
};

}  // namespace arcflow::feed::testing
