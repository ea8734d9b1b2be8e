// SPDX-License-Identifier: Apache-2.0
// Region: memory of this process that peers may read or write through the transport, and what a
// peer needs to name it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "arcflow/base/status.h"

namespace arcflow::transport {

/// Random name of one context (one process, normally), fresh at each start: a restarted process is
/// another node, so that what its predecessor handed out is recognised as stale.
struct NodeId {
  std::array<std::uint8_t, 16> bytes{};

  /// Internal when the system has no random bytes.
  static Result<NodeId> Random();
  std::string ToString() const;  // 32 hexadecimal digits
  friend bool operator==(const NodeId&, const NodeId&) = default;
  friend auto operator<=>(const NodeId&, const NodeId&) = default;
};

/// What peers may do with a region.
enum class Access : std::uint8_t { kRead = 1, kWrite = 2, kReadWrite = 3 };

inline bool CanRead(Access a) { return (static_cast<unsigned>(a) & 1U) != 0; }
inline bool CanWrite(Access a) { return (static_cast<unsigned>(a) & 2U) != 0; }

/// Names a region of another process. Plain data, cheap to copy; holds no address: a peer says key
/// and offset, and only the owner knows where that is. Knowing the key is the permission.
struct RemoteRegion {
  static constexpr std::size_t kBytes = 48;  // serialised; layout: docs/formats/transport.md

  NodeId owner;
  std::uint64_t key = 0;  // random, never 0 for a real region
  std::uint64_t size_bytes = 0;
  Access access = Access::kReadWrite;

  /// Exactly kBytes bytes, to travel by whatever road (a gRPC field, a message).
  std::string Serialize() const;
  /// InvalidArgument for anything that Serialize() did not make.
  static Result<RemoteRegion> Parse(std::string_view bytes);
  friend bool operator==(const RemoteRegion&, const RemoteRegion&) = default;
};

class RegionTable;
struct RegionRecord;

/// A registration. Move-only; the destructor deregisters.
/// Memory rule: the bytes belong to the caller, must stay mapped until Deregister() returns, and
/// are written only by threads of this process on behalf of a peer's Put. After Deregister() (or
/// the destructor) returned, no Put that was ever issued, not even one in flight, can write into
/// them; a peer's operation that comes later or was not whole gets NotFound. A Get that a peer has
/// not finished fails at the peer instead of giving it bytes written afterwards.
/// Threads: one owner; Deregister may be called on any thread, callbacks included. It waits for the
/// copy into the region that is running just now, never for a peer (ucx: at most
/// ContextOptions::quiesce_timeout for one, then it cuts that peer off).
class Region {
 public:
  Region() = default;
  Region(Region&& other) noexcept;
  Region& operator=(Region&& other) noexcept;
  ~Region();

  bool valid() const { return record_ != nullptr; }
  std::span<std::byte> bytes() const;
  /// Requires valid().
  const RemoteRegion& remote() const;
  /// Idempotent.
  void Deregister();

 private:
  friend class RegionTable;
  Region(std::shared_ptr<RegionTable> table, std::shared_ptr<RegionRecord> record);

  std::shared_ptr<RegionTable> table_;
  std::shared_ptr<RegionRecord> record_;
};

}  // namespace arcflow::transport
