// SPDX-License-Identifier: Apache-2.0
// The window of ranges ahead of a reader, and reads past it.
#include "arcflow/hdfs/file_reader.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <string>
#include <vector>

namespace arcflow::hdfs {
namespace {

constexpr std::size_t kFirstChunk = std::size_t{256} * 1024;
/// The first chunk somewhere else in a file: a request costs as much as so many bytes do. 64 KiB
/// are what kernels like to read, and TensorFlow tries one byte before the place that it seeks.
constexpr std::size_t kChunkAfterJump = std::size_t{68} * 1024;
/// A read elsewhere of up to so many bytes is taken for the beginning of reads in order.
constexpr std::size_t kSmallRead = std::size_t{4} * 1024;
/// Memory of chunks that is kept for the next ones, so that its pages are there already.
constexpr std::size_t kMaxSpares = 4;

/// One range that is fetched ahead.
struct Chunk {
  std::uint64_t offset = 0;
  std::span<char> bytes;  // of `memory`
  std::unique_ptr<char[]> memory;
  std::size_t capacity = 0;
  bool ready = false;
  Status status;

  std::uint64_t end() const { return offset + bytes.size(); }
};

}  // namespace

struct FileReader::Impl : std::enable_shared_from_this<FileReader::Impl> {
  std::unique_ptr<RangeFetcher> fetcher;
  Measure measure;
  WorkPool* pool = nullptr;
  const Options* options = nullptr;
  std::atomic<std::size_t>* readahead = nullptr;

  std::mutex mutex;
  std::condition_variable changed;
  std::uint64_t size = 0;
  std::uint64_t expected = 0;      // where the next read in order begins
  std::size_t ramp = kFirstChunk;  // size of the next chunk: small at first, files may be peeked at
  int wanted = 1;                  // chunks ahead; grows with what is used
  std::deque<std::shared_ptr<Chunk>> window;    // in order, without gaps
  std::vector<std::unique_ptr<char[]>> spares;  // of options->chunk_bytes each

  ~Impl() { DropWindow(); }

  void DropWindow() {
    while (!window.empty()) DropFront();
  }
  void DropFront();
  bool Covers(std::uint64_t offset) const {
    return !window.empty() && offset >= window.front()->offset && offset <= window.back()->end();
  }
  void DropBefore(std::uint64_t offset);
  std::shared_ptr<Chunk> MakeChunk(std::uint64_t offset, std::size_t bytes);
  std::shared_ptr<Chunk> Extend(std::uint64_t from, std::size_t at_least);
  void Fetch(const std::shared_ptr<Chunk>& chunk);
  Status ReadInOrder(std::uint64_t offset, std::span<char> out, std::unique_lock<std::mutex>* lock);
  Status ReadDirect(std::uint64_t offset, std::span<char> out);
  Result<std::size_t> Clip(std::uint64_t offset, std::size_t n);
};

/// Needs the lock.
void FileReader::Impl::DropFront() {
  const std::shared_ptr<Chunk> chunk = std::move(window.front());
  window.pop_front();
  readahead->fetch_sub(chunk->bytes.size());
  // One that is still being filled, or is read by another thread, is not the only owner's.
  if (chunk->ready && chunk.use_count() == 1 && chunk->capacity == options->chunk_bytes &&
      spares.size() < kMaxSpares) {
    spares.push_back(std::move(chunk->memory));
  }
}

/// Chunks that end at or before `offset` have been used up. Needs the lock.
void FileReader::Impl::DropBefore(std::uint64_t offset) {
  while (!window.empty() && window.front()->end() <= offset) {
    DropFront();
    wanted = std::min(wanted + 1, options->parallel_reads);
  }
}

/// Needs the lock.
std::shared_ptr<Chunk> FileReader::Impl::MakeChunk(std::uint64_t offset, std::size_t bytes) {
  auto chunk = std::make_shared<Chunk>();
  chunk->offset = offset;
  if (bytes > options->chunk_bytes / 2 && bytes <= options->chunk_bytes) {
    chunk->capacity = options->chunk_bytes;
    if (!spares.empty()) {
      chunk->memory = std::move(spares.back());
      spares.pop_back();
    }
  } else {
    chunk->capacity = bytes;
  }
  if (chunk->memory == nullptr) {
    chunk->memory = std::make_unique_for_overwrite<char[]>(chunk->capacity);
  }
  chunk->bytes = {chunk->memory.get(), bytes};
  return chunk;
}

/// Fetches ahead as far as the window and the memory of all readers allow. Returns the chunk that
/// the caller waits for and is to fetch itself, if it is a new one. Needs the lock.
std::shared_ptr<Chunk> FileReader::Impl::Extend(std::uint64_t from, std::size_t at_least) {
  std::shared_ptr<Chunk> first;
  for (;;) {
    const std::uint64_t begin = window.empty() ? from : window.back()->end();
    if (begin >= size) return first;
    const bool needed = window.empty();
    if (!needed && static_cast<int>(window.size()) >= wanted) return first;
    const std::size_t bytes = static_cast<std::size_t>(
        std::min<std::uint64_t>(std::max(ramp, needed ? at_least : 0), size - begin));
    if (!needed && readahead->load() + bytes > options->readahead_bytes) return first;
    readahead->fetch_add(bytes);
    ramp = std::min(ramp * 2, options->chunk_bytes);
    auto chunk = MakeChunk(begin, bytes);
    window.push_back(chunk);
    if (needed) {
      first = std::move(chunk);
    } else {
      pool->Submit([self = shared_from_this(), chunk] { self->Fetch(chunk); });
    }
  }
}

void FileReader::Impl::Fetch(const std::shared_ptr<Chunk>& chunk) {
  Status status = fetcher->Fetch(chunk->offset, chunk->bytes);
  const std::lock_guard lock(mutex);
  chunk->status = std::move(status);
  chunk->ready = true;
  changed.notify_all();
}

Status FileReader::Impl::ReadInOrder(std::uint64_t offset, std::span<char> out,
                                     std::unique_lock<std::mutex>* lock) {
  if (!Covers(offset)) DropWindow();
  while (!out.empty()) {
    DropBefore(offset);
    if (!window.empty() && window.front()->offset > offset) DropWindow();
    const auto mine = Extend(offset, std::min(out.size(), options->chunk_bytes));
    std::shared_ptr<Chunk> chunk = window.front();
    if (mine != nullptr) {  // nothing is gained by another thread
      lock->unlock();
      Fetch(mine);
      lock->lock();
    }
    changed.wait(*lock, [&] { return chunk->ready; });
    if (!chunk->status.ok()) {
      const Status status = chunk->status;
      DropWindow();  // the next read tries anew
      return status;
    }
    const std::size_t skip = static_cast<std::size_t>(offset - chunk->offset);
    const std::size_t n = std::min(out.size(), chunk->bytes.size() - skip);
    std::memcpy(out.data(), chunk->bytes.data() + skip, n);
    out = out.subspan(n);
    offset += n;
  }
  DropBefore(offset);
  if (!window.empty()) Extend(offset, 0);
  return Status::Ok();
}

/// Without the lock: straight into `out`, in as many pieces as are worth it.
Status FileReader::Impl::ReadDirect(std::uint64_t offset, std::span<char> out) {
  const std::size_t pieces =
      std::clamp<std::size_t>(out.size() / options->chunk_bytes, 1,
                              static_cast<std::size_t>(std::max(1, options->parallel_reads)));
  if (pieces == 1) return fetcher->Fetch(offset, out);
  struct Shared {
    std::mutex mutex;
    std::condition_variable changed;
    std::size_t left;
    Status status;
  };
  Shared shared;
  shared.left = pieces - 1;
  const std::size_t step = (out.size() + pieces - 1) / pieces;
  const auto fetch = [&](std::size_t k) {
    const std::size_t begin = std::min(k * step, out.size());
    return fetcher->Fetch(offset + begin, out.subspan(begin, std::min(step, out.size() - begin)));
  };
  for (std::size_t k = 1; k < pieces; ++k) {
    pool->Submit([&shared, fetch, k] {
      Status status = fetch(k);
      const std::lock_guard guard(shared.mutex);
      if (!status.ok() && shared.status.ok()) shared.status = std::move(status);
      --shared.left;
      shared.changed.notify_all();  // under the lock: `shared` goes when left is 0
    });
  }
  Status mine = fetch(0);
  std::unique_lock guard(shared.mutex);
  shared.changed.wait(guard, [&] { return shared.left == 0; });
  return mine.ok() ? shared.status : mine;
}

/// How much of a read the file has; asks for the file's length again when it seems to end.
Result<std::size_t> FileReader::Impl::Clip(std::uint64_t offset, std::size_t n) {
  std::unique_lock lock(mutex);
  if (offset > size || n > size - offset) {
    lock.unlock();
    ARC_ASSIGN(const std::uint64_t now, measure());
    lock.lock();
    size = std::max(size, now);
  }
  return offset >= size ? 0 : static_cast<std::size_t>(std::min<std::uint64_t>(n, size - offset));
}

FileReader::FileReader(std::unique_ptr<RangeFetcher> fetcher, std::uint64_t size, Measure measure,
                       WorkPool* pool, const Options& options, std::atomic<std::size_t>* readahead)
    : impl_(std::make_shared<Impl>()) {
  impl_->fetcher = std::move(fetcher);
  impl_->size = size;
  impl_->measure = std::move(measure);
  impl_->pool = pool;
  impl_->options = &options;
  impl_->readahead = readahead;
}

FileReader::~FileReader() { impl_->fetcher->Cancel(); }

std::uint64_t FileReader::size() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->size;
}

Result<std::size_t> FileReader::Read(std::uint64_t offset, std::span<char> out) {
  ARC_ASSIGN(const std::size_t n, impl_->Clip(offset, out.size()));
  out = out.first(n);
  if (n == 0) return n;
  std::unique_lock lock(impl_->mutex);
  bool in_order = offset == impl_->expected || impl_->Covers(offset);
  impl_->expected = offset + n;
  if (!in_order) {
    const bool streams = impl_->wanted > 1 && !impl_->window.empty();  // this is a look elsewhere
    impl_->ramp = kChunkAfterJump;
    impl_->wanted = 1;
    in_order = n <= kSmallRead && !streams;
  }
  // Reads of several chunks are parallel by themselves; copying them through the window is waste.
  const bool large = n >= 2 * impl_->options->chunk_bytes && !impl_->Covers(offset);
  if (in_order && !large) {
    ARC_TRY(impl_->ReadInOrder(offset, out, &lock));
    return n;
  }
  lock.unlock();
  ARC_TRY(impl_->ReadDirect(offset, out));
  return n;
}

}  // namespace arcflow::hdfs
