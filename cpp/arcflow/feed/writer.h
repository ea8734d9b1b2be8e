// SPDX-License-Identifier: Apache-2.0
// Writer: puts Arrow batches into the shared segments of a node's feed log.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "arcflow/base/deadline.h"
#include "arcflow/base/status.h"
#include "arcflow/columnar/arrow_abi.h"
#include "arcflow/columnar/schema.h"
#include "arcflow/feed/granted_memory.h"

namespace arcflow::feed {

/// What a writer asks of the agent; FeederLink speaks it over the feeder's socket, tests give a
/// fake.
class SegmentSource {
 public:
  struct Grant {
    std::uint64_t buffer = 0;    // id of the memory
    std::size_t size_bytes = 0;  // its size; >= what was asked for
    bool create = false;  // true: make a memfd of that size; false: a buffer made before for this
                          // feed, empty again
    std::vector<std::uint64_t> drop;  // buffers of any feed, given up for this one: unmapped first
  };
  virtual ~SegmentSource() = default;
  /// Waits until the budget allows a segment of `min_bytes`. Cancelled when the node wants no more
  /// rows; ResourceExhausted (message names both sizes) when min_bytes is over the whole budget.
  virtual Result<Grant> Acquire(const std::string& feed, std::size_t min_bytes,
                                Deadline deadline) = 0;
  /// Makes rows [0, rows) of the segment in `grant` visible. `fd` is the memfd the first time a
  /// created buffer is used, else -1.
  virtual Status Publish(const std::string& feed, const Grant& grant, std::size_t rows, bool closed,
                         int fd) = 0;

  /// What this source's grants have become in this process; all its writers share it.
  GrantedMemory& memory() { return memory_; }

 private:
  GrantedMemory memory_;
};

/// Appends batches to one feed. Rows become visible to readers after every Append; a segment is
/// closed when it is full. Capacity in rows is a power of two where rows are of fixed size, so that
/// usual batch sizes never straddle segments. Threads: one thread at a time for all writers of a
/// source. Blocking: Append (while the budget is used up).
class Writer {
 public:
  struct Options {
    std::string feed;
    columnar::Schema schema;
    std::size_t segment_bytes = 0;  // size aimed at; a row that is larger gets a segment of its own
  };
  Writer(Options options, SegmentSource& source);
  ~Writer();

  /// Copies all rows of a struct array (a record batch) whose children match the schema by name, in
  /// any order. Checked before any row is visible: InvalidArgument with feed, column and first bad
  /// row for a missing column, another type than the schema says, a null (count given), a list or
  /// raw value of another length. Cancelled when the node wants no more rows. Whole rows only ever
  /// become visible, in order; when Append fails after some rows of the batch were taken, rows()
  /// counts them. `taken` (may be null): the first row to append on entry, the first row not yet
  /// visible on return. With it, an Append that ran into DeadlineExceeded goes on where it stopped
  /// when called again with the same batch; without it, such an Append that took a part of the
  /// batch makes the writer unusable (FailedPrecondition), as Unavailable and Cancelled do.
  Status Append(const ArrowSchema& schema, const ArrowArray& batch, Deadline deadline,
                std::size_t* taken = nullptr);
  /// Closes the open segment. Idempotent; nothing to do after an error. The feed's memory stays
  /// mapped for a later Append; who knows that none will come calls memory().DropFeed().
  Status Finish();

  std::uint64_t rows() const;
  std::uint64_t bytes() const;
  std::uint64_t wait_ns() const;  // time spent waiting for Acquire

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace arcflow::feed
