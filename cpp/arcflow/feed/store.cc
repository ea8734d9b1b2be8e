// SPDX-License-Identifier: Apache-2.0
// BufferStore: grant, recycle and destroy decisions within the budget.
#include "arcflow/feed/store.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace arcflow::feed {

using State = BufferStore::Buffer::State;

std::size_t BufferStore::RoundUp(std::size_t bytes) {
  if (bytes > SIZE_MAX - kPageBytes) return SIZE_MAX;
  return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
}

std::optional<BufferStore::Grant> BufferStore::TryGrant(const std::string& feed,
                                                        std::size_t bytes) {
  bytes = RoundUp(bytes);
  std::optional<std::uint64_t> best;
  for (const auto& [id, buffer] : buffers_) {
    if (buffer.state != State::kFree || buffer.feed != feed || buffer.bytes < bytes) continue;
    if (!best || buffer.bytes < buffers_.at(*best).bytes) best = id;
  }
  if (best) return Reuse(*best);
  if (bytes > budget_ || used_ - free_ > budget_ - bytes) return std::nullopt;
  while (used_ > budget_ - bytes) Destroy(*LeastUseful(feed));
  return Create(feed, bytes);
}

BufferStore::Grant BufferStore::Reuse(std::uint64_t id) {
  Buffer& buffer = buffers_.at(id);
  buffer.state = State::kGranted;
  free_ -= buffer.bytes;
  feeds_[buffer.feed].granted += buffer.bytes;
  return Grant{id, buffer.bytes, false, std::exchange(feeder_to_drop_, {})};
}

BufferStore::Grant BufferStore::Create(const std::string& feed, std::size_t bytes) {
  const std::uint64_t id = NextId();
  Buffer& buffer = buffers_[id];
  buffer.feed = feed;
  buffer.bytes = bytes;
  used_ += bytes;
  peak_ = std::max(peak_, used_);
  FeedBytes& sums = feeds_[feed];
  sums.granted += bytes;
  Grant grant{id, bytes, true, {}};
  buffer.by_agent = sums.retired;
  if (!buffer.by_agent) grant.drop = std::exchange(feeder_to_drop_, {});
  return grant;
}

/// Other feeds' free memory goes first, because this feed's writer may still use its own; then the
/// largest.
std::optional<std::uint64_t> BufferStore::LeastUseful(const std::string& feed) const {
  std::optional<std::uint64_t> found;
  const auto rank = [&](const Buffer& b) { return std::pair(b.feed != feed, b.bytes); };
  for (const auto& [id, buffer] : buffers_) {
    if (buffer.state != State::kFree) continue;
    if (!found || rank(buffer) > rank(buffers_.at(*found))) found = id;
  }
  return found;
}

const BufferStore::Buffer* BufferStore::Find(std::uint64_t buffer) const {
  const auto found = buffers_.find(buffer);
  return found == buffers_.end() ? nullptr : &found->second;
}

Status BufferStore::Adopt(std::uint64_t id, Fd memfd) {
  const auto found = buffers_.find(id);
  if (found == buffers_.end() || found->second.state != State::kGranted) {
    return InvalidArgument("memory for buffer " + std::to_string(id) + ", which is not granted");
  }
  Buffer& buffer = found->second;
  const std::string what = "memory for buffer " + std::to_string(id);
  if (buffer.memfd.valid()) return InvalidArgument(what + " was sent before");
  struct stat info {};
  if (::fstat(memfd.get(), &info) != 0) return Status::FromErrno(errno, what);
  if (static_cast<std::uint64_t>(info.st_size) != buffer.bytes) {
    return InvalidArgument(what + " has " + std::to_string(info.st_size) + " bytes instead of " +
                           std::to_string(buffer.bytes));
  }
  const int seals = ::fcntl(memfd.get(), F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || (seals & F_SEAL_GROW) == 0) {
    return InvalidArgument(what + " is not a memfd that is sealed against shrinking and growing");
  }
  buffer.memfd = std::move(memfd);
  return Status::Ok();
}

void BufferStore::Close(std::uint64_t id) {
  Buffer& buffer = buffers_.at(id);
  if (buffer.state != State::kGranted) return;
  Leave(buffer);
  buffer.state = State::kKept;
  feeds_[buffer.feed].kept += buffer.bytes;
}

/// Takes the buffer out of the sums of its state.
void BufferStore::Leave(const Buffer& buffer) {
  FeedBytes& feed = feeds_[buffer.feed];
  switch (buffer.state) {
    case State::kGranted:
      feed.granted -= buffer.bytes;
      break;
    case State::kKept:
      feed.kept -= buffer.bytes;
      break;
    case State::kFree:
      free_ -= buffer.bytes;
      break;
  }
}

void BufferStore::Free(std::uint64_t id) {
  Buffer& buffer = buffers_.at(id);
  if (buffer.state == State::kFree) return;
  if (!buffer.memfd.valid() || feeds_[buffer.feed].retired) {
    Destroy(id);
    return;
  }
  Leave(buffer);
  buffer.state = State::kFree;
  free_ += buffer.bytes;
}

void BufferStore::Destroy(std::uint64_t id) {
  const auto found = buffers_.find(id);
  Leave(found->second);
  used_ -= found->second.bytes;
  if (!found->second.by_agent) feeder_to_drop_.push_back(id);
  buffers_.erase(found);
  destroyed_.push_back(id);
}

void BufferStore::RetireFeed(const std::string& feed) {
  feeds_[feed].retired = true;
  std::vector<std::uint64_t> free;
  for (const auto& [id, buffer] : buffers_) {
    if (buffer.feed == feed && buffer.state == State::kFree) free.push_back(id);
  }
  for (const std::uint64_t id : free) Destroy(id);
}

void BufferStore::Move(const std::string& from, const std::string& to) {
  for (auto& [id, buffer] : buffers_) {
    if (buffer.feed != from || buffer.state != State::kKept) continue;
    Leave(buffer);
    buffer.feed = to;
    feeds_[to].kept += buffer.bytes;
  }
}

void BufferStore::Remove(const std::string& feed) {
  std::vector<std::uint64_t> ids;
  for (const auto& [id, buffer] : buffers_) {
    if (buffer.feed == feed) ids.push_back(id);
  }
  for (const std::uint64_t id : ids) Destroy(id);
  feeds_.erase(feed);
}

std::vector<std::uint64_t> BufferStore::TakeDestroyed() { return std::exchange(destroyed_, {}); }

std::vector<std::uint64_t> BufferStore::Granted(const std::string& feed) const {
  std::vector<std::uint64_t> ids;
  for (const auto& [id, buffer] : buffers_) {
    if (buffer.feed == feed && buffer.state == State::kGranted) ids.push_back(id);
  }
  return ids;
}

std::size_t BufferStore::granted_bytes(const std::string& feed) const {
  const auto found = feeds_.find(feed);
  return found == feeds_.end() ? 0 : found->second.granted;
}

std::size_t BufferStore::busy_bytes(const std::string& feed) const {
  const auto found = feeds_.find(feed);
  return found == feeds_.end() ? 0 : found->second.granted + found->second.kept;
}

}  // namespace arcflow::feed
