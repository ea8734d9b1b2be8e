// SPDX-License-Identifier: Apache-2.0
// Regions and their table: random keys, checked bounds, revocation that waits.
#include "arcflow/transport/region.h"

#include <sys/random.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "arcflow/transport/region_table.h"

namespace arcflow::transport {
namespace {

constexpr std::uint32_t kRegionMagic = 0x52435241;  // "ARCR"
constexpr std::uint16_t kRegionVersion = 1;

// Layout of a serialised region (docs/formats/transport.md), little endian.
struct RegionBytes {
  std::uint32_t magic;
  std::uint16_t version;
  std::uint8_t access;
  std::uint8_t zero[9];
  std::uint64_t key;
  std::uint64_t size_bytes;
  std::uint8_t owner[16];
};
static_assert(sizeof(RegionBytes) == RemoteRegion::kBytes);

}  // namespace

Status RandomBytes(std::span<std::uint8_t> out) {
  std::size_t done = 0;
  while (done < out.size()) {
    const ssize_t n = ::getrandom(out.data() + done, out.size() - done, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return Internal("the system has no random bytes");
    done += static_cast<std::size_t>(n);
  }
  return Status::Ok();
}

Result<NodeId> NodeId::Random() {
  NodeId id;
  ARC_TRY(RandomBytes(id.bytes));
  return id;
}

std::string NodeId::ToString() const {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  for (const std::uint8_t b : bytes) {
    out += kDigits[b >> 4U];
    out += kDigits[b & 15U];
  }
  return out;
}

std::string RemoteRegion::Serialize() const {
  RegionBytes raw{};
  raw.magic = kRegionMagic;
  raw.version = kRegionVersion;
  raw.access = static_cast<std::uint8_t>(access);
  raw.key = key;
  raw.size_bytes = size_bytes;
  std::memcpy(raw.owner, owner.bytes.data(), sizeof(raw.owner));
  return {reinterpret_cast<const char*>(&raw), sizeof(raw)};
}

Result<RemoteRegion> RemoteRegion::Parse(std::string_view bytes) {
  RegionBytes raw;
  if (bytes.size() != sizeof(raw)) {
    return InvalidArgument("a remote region has " + std::to_string(kBytes) + " bytes, not " +
                           std::to_string(bytes.size()));
  }
  std::memcpy(&raw, bytes.data(), sizeof(raw));
  if (raw.magic != kRegionMagic) return InvalidArgument("bytes are no remote region");
  if (raw.version != kRegionVersion) {
    return InvalidArgument("remote region of version " + std::to_string(raw.version) +
                           "; both sides need the same release of Arcflow");
  }
  for (const std::uint8_t b : raw.zero) {
    if (b != 0) return InvalidArgument("remote region with unknown fields");
  }
  if (raw.access < 1 || raw.access > 3 || raw.key == 0 || raw.size_bytes == 0) {
    return InvalidArgument("remote region with fields out of range");
  }
  RemoteRegion region;
  region.key = raw.key;
  region.size_bytes = raw.size_bytes;
  region.access = static_cast<Access>(raw.access);
  std::memcpy(region.owner.bytes.data(), raw.owner, sizeof(raw.owner));
  return region;
}

Result<Region> RegionTable::Add(std::span<std::byte> bytes, Access access) {
  if (bytes.empty()) return InvalidArgument("a region needs at least one byte");
  auto record = std::make_shared<RegionRecord>();
  record->data = bytes.data();
  record->remote.owner = owner_;
  record->remote.size_bytes = bytes.size();
  record->remote.access = access;
  record->word = words_.Take();
  record->word_value = record->word->load(std::memory_order_relaxed);
  for (;;) {
    std::uint64_t key = 0;
    const Status random = RandomBytes({reinterpret_cast<std::uint8_t*>(&key), sizeof(key)});
    if (!random.ok()) {
      words_.Give(record->word);
      return random;
    }
    record->remote.key = key;
    std::unique_lock lock(mutex_);
    if (key != 0 && by_key_.emplace(key, record).second) break;
  }
  counters_->registrations.fetch_add(1, std::memory_order_relaxed);
  counters_->regions.fetch_add(1, std::memory_order_relaxed);
  return Region(shared_from_this(), std::move(record));
}

Result<std::shared_ptr<RegionRecord>> RegionTable::Check(std::uint64_t key, std::uint64_t offset,
                                                         std::uint64_t n, Access wanted) const {
  std::shared_ptr<RegionRecord> record;
  {
    std::shared_lock lock(mutex_);
    const auto it = by_key_.find(key);
    if (it != by_key_.end()) record = it->second;
  }
  if (record == nullptr) return NotFound("the peer has no region with this key (any more)");
  const RemoteRegion& remote = record->remote;
  if (n > remote.size_bytes || offset > remote.size_bytes - n) {
    return OutOfRange(std::to_string(n) + " bytes at " + std::to_string(offset) +
                      " do not lie in a region of " + std::to_string(remote.size_bytes) + " bytes");
  }
  const bool allowed = wanted == Access::kRead ? CanRead(remote.access) : CanWrite(remote.access);
  if (!allowed) {
    return InvalidArgument(wanted == Access::kRead ? "the region is not readable by peers"
                                                   : "the region is not writable by peers");
  }
  return record;
}

void RegionTable::Remove(const std::shared_ptr<RegionRecord>& record) {
  bool mine = false;
  {
    std::unique_lock lock(mutex_);
    mine = by_key_.erase(record->remote.key) == 1;
  }
  if (mine) {
    counters_->regions.fetch_sub(1, std::memory_order_relaxed);
    words_.Give(record->word);
  }
  record->gate.Close();
  Drain(record->gate);
}

void RegionTable::RemoveAll() {
  std::unordered_map<std::uint64_t, std::shared_ptr<RegionRecord>> all;
  {
    std::unique_lock lock(mutex_);
    all.swap(by_key_);
  }
  for (auto& [key, record] : all) {
    counters_->regions.fetch_sub(1, std::memory_order_relaxed);
    words_.Give(record->word);
    record->gate.Close();
    Drain(record->gate);
  }
}

void RegionTable::SetDrain(std::function<void(Gate&)> drain) {
  std::lock_guard lock(drain_mutex_);
  drain_ = drain ? std::make_shared<const std::function<void(Gate&)>>(std::move(drain)) : nullptr;
}

void RegionTable::Drain(Gate& gate) {
  std::shared_ptr<const std::function<void(Gate&)>> drain;
  {
    std::lock_guard lock(drain_mutex_);
    drain = drain_;
  }
  if (drain != nullptr && !gate.drained()) (*drain)(gate);
  gate.Wait();
}

Region::Region(std::shared_ptr<RegionTable> table, std::shared_ptr<RegionRecord> record)
    : table_(std::move(table)), record_(std::move(record)) {}

Region::Region(Region&& other) noexcept = default;

Region& Region::operator=(Region&& other) noexcept {
  if (this != &other) {
    Deregister();
    table_ = std::move(other.table_);
    record_ = std::move(other.record_);
  }
  return *this;
}

Region::~Region() { Deregister(); }

std::span<std::byte> Region::bytes() const {
  return {record_->data, static_cast<std::size_t>(record_->remote.size_bytes)};
}

const RemoteRegion& Region::remote() const { return record_->remote; }

void Region::Deregister() {
  if (record_ != nullptr) table_->Remove(record_);
}

}  // namespace arcflow::transport
