// SPDX-License-Identifier: Apache-2.0
// Reader: turns a node's feed log into batches; each batch names the rows of shared segments it
// consists of.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "arcflow/base/counter_page.h"
#include "arcflow/base/deadline.h"
#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"
#include "arcflow/columnar/schema.h"

namespace arcflow::feed {

/// What happens to the last rows when ranks hold different numbers of rows, or rows do not fill a
/// batch.
enum class Remainder : int {
  kPad = 0,   // every rank makes as many steps as the rank with most rows; missing rows are padding
              // (weight 0)
  kDrop = 1,  // every rank makes as many full batches as the rank with fewest rows
  kRefuse = 2,  // FailedPrecondition unless all ranks hold the same number of rows; the last batch
                // may be short
  kPartial =
      3,  // this rank's own rows only, last batch short: for programs that never synchronise ranks
};

/// One lease on a mapped segment. While any copy lives, the agent does not reuse the segment's
/// memory.
class SegmentView;  // segment_view.h

/// `rows` rows of one segment, from its row `begin`.
struct Piece {
  std::shared_ptr<const SegmentView> segment;
  std::size_t begin = 0;
  std::size_t rows = 0;
};

/// One row of a shuffled batch.
struct RowAt {
  const SegmentView* segment = nullptr;  // kept by Batch::segments
  std::size_t row = 0;
};

/// One step's rows: all pieces in order (row count = batch_size less padding), then `padding` rows
/// of weight 0. A shuffled batch has no pieces, but single rows.
struct Batch {
  std::uint64_t step = 0;  // since the start of the pass
  std::vector<Piece> pieces;
  std::vector<RowAt> gathered;
  std::shared_ptr<const std::vector<std::shared_ptr<const SegmentView>>> segments;  // of `gathered`
  std::size_t padding = 0;

  std::size_t real_rows() const;
  std::size_t rows() const { return real_rows() + padding; }
};

struct ReaderOptions {
  std::string feed;
  std::size_t batch_size = 0;  // rows per batch on this rank, > 0
  Remainder remainder = Remainder::kPad;
  std::shared_ptr<CounterPage> counters;  // may be null
  /// Rows come in an order that follows from seed, epoch, rank and the number of rows alone (see
  /// RowShuffle). The first batch then waits for the end of the feed.
  std::optional<std::uint64_t> shuffle_seed = {};
};

/// One pass over a feed, from any position. Several readers of one feed are independent.
/// Threads: Next, Seek, position: one thread at a time; Cancel from any thread. Blocking: Open,
/// Next.
class Reader {
 public:
  /// Opens a reader through the node's broker socket (`broker_fd`, not owned): makes a packet pair,
  /// hands one end to the agent, waits for the schema. Errors: NotFound for an unknown feed
  /// (message lists the feeds), Unavailable, DeadlineExceeded.
  /// FailedPrecondition for shuffling a feed whose rows can be read only once (cache none).
  static Result<std::unique_ptr<Reader>> Open(int broker_fd, ReaderOptions options,
                                              Deadline deadline);
  ~Reader();

  const columnar::Schema& schema() const;
  const ReaderOptions& options() const;

  /// The next batch; std::nullopt at the end of the pass. Waits for rows as long as the feed is
  /// open. Errors: Cancelled after Cancel(); Unavailable when the agent is gone; what the feed
  /// failed with otherwise; FailedPrecondition under kRefuse, or when a feed that is read only once
  /// (cache none) has dropped these rows.
  Result<std::optional<Batch>> Next(Deadline deadline);

  /// Next in two parts, for who makes use of batches some time after they were cut: Take gives the
  /// next batch, or the end, and counts nothing; HandOut counts it when the program gets it, or
  /// ends the pass (nullptr, once Take has given the end). `waited`: how long the program waited
  /// for it. Threads: Take from one and HandOut from another at the same time; nothing else
  /// meanwhile.
  Result<std::optional<Batch>> Take(Deadline deadline);
  void HandOut(const Batch* batch, std::chrono::nanoseconds waited);

  /// Steps handed out (or taken) since the start of the pass: what a checkpoint stores.
  std::uint64_t position() const;
  /// Goes on at that step. Rows are addressed by number, so nothing is read in between.
  Status Seek(std::uint64_t step);
  /// The same in the order that shuffling gives in another epoch; 0 is that of a new reader.
  Status Seek(std::uint64_t step, std::uint64_t epoch);

  /// Makes a blocked and every later Next return Cancelled. Async-signal-free, callable from any
  /// thread.
  void Cancel();

 private:
  struct Impl;
  explicit Reader(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Bytes of a column of a batch when they already lie dense, in one segment, without padding and
/// 64-byte aligned, and the number of leased segments leaves the writer room; empty otherwise.
/// Fixed-width columns only. The span lives as long as batch.pieces[0].segment.
std::span<const std::byte> DenseView(const Batch& batch, std::size_t column);

/// Copies a fixed-width column of the batch, padding included, to `out` (rows() * row_bytes()).
/// Padding repeats the last real row, or is zero when the batch has none, so that no padded row
/// makes a NaN of its own.
Status CopyColumn(const Batch& batch, const columnar::Schema& schema, std::size_t column,
                  std::span<std::byte> out);

/// The bytes of each row of a variable column in order, padding included (no bytes, or the last
/// real row's). Views live as long as the batch. DataLoss when offsets in shared memory are out of
/// bounds.
Status StringColumn(const Batch& batch, std::size_t column, std::vector<std::string_view>* out);

/// A variable column of a batch, padding included. Everything was checked, and is read from here
/// only, so that nobody who scribbles into shared memory can make the parts disagree.
struct RaggedRows {
  std::vector<std::int64_t> splits;                // rows + 1: items before each row, and all
  std::vector<std::span<const std::byte>> chunks;  // the items, in order; live as long as the batch
  std::size_t bytes = 0;                           // of all chunks
};
/// Errors: InvalidArgument for a column of fixed width; DataLoss as StringColumn.
Status RaggedColumn(const Batch& batch, const columnar::Schema& schema, std::size_t column,
                    RaggedRows* out);
/// The items when they lie in one place that a tensor may use as it is (see DenseView); else empty.
std::span<const std::byte> DenseItems(const Batch& batch, const RaggedRows& rows);
/// Copies all items to `out`, which must have room for `rows.bytes`.
void CopyItems(const RaggedRows& rows, std::byte* out);

/// The strings of arrays of strings, which lie as two columns: their `lengths` (kLengths, fixed or
/// ragged) and their `bytes` (kBytes). In order, padding included. DataLoss when the two disagree.
Status ArrayStrings(const Batch& batch, const columnar::Schema& schema, std::size_t lengths,
                    std::size_t bytes, std::vector<std::string_view>* out);

}  // namespace arcflow::feed
