// SPDX-License-Identifier: Apache-2.0
// CopyCrew: a few threads that help with a large copy. Internal to the backend.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "arcflow/base/status.h"

namespace arcflow::transport::shm {

/// The kernel copies another process's memory page by page, at half of what memory gives to one
/// core; with cores to spare, several copy at once. Who asks copies too and waits for no helper
/// that has not begun, so a busy machine costs nothing but a wake-up. Threads: any; one copy at a
/// time is helped, others go alone.
class CopyCrew {
 public:
  using CopyPart = std::function<Status(std::size_t offset, std::size_t bytes)>;

  /// The one of the process, while anybody holds it.
  static std::shared_ptr<CopyCrew> Shared();
  /// Threads begin with the first large copy, and end with the crew.
  explicit CopyCrew(int helpers) : helpers_(helpers) {}
  ~CopyCrew();
  CopyCrew(const CopyCrew&) = delete;
  CopyCrew& operator=(const CopyCrew&) = delete;

  /// Calls `part` until all of [0, total) is done, in parts that do not overlap, in this thread and
  /// in helpers. Returns, when all calls have, the error of one that failed; what others do after
  /// it is not said.
  Status Copy(std::size_t total, const CopyPart& part);

 private:
  struct Task;
  void Start();
  void Help();

  const int helpers_;
  std::mutex mutex_;
  std::condition_variable wanted_;
  std::condition_variable left_;
  // By mutex_:
  std::vector<std::thread> threads_;
  bool ending_ = false;
  Task* task_ = nullptr;
  std::uint64_t tasks_ = 0;  // so far; the number of the last one
};

}  // namespace arcflow::transport::shm
