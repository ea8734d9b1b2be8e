// SPDX-License-Identifier: Apache-2.0
// Counters: what a context has moved and registered, so that "registered once, reused every step"
// can be checked.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace arcflow::transport {

/// Index of a backend in Counters::by_backend.
enum class BackendKind : std::uint8_t { kShm = 0, kTcp = 1, kUcx = 2, kRdma = 3 };
inline constexpr std::size_t kBackendKinds = 4;

/// "shm", "tcp", "ucx", "rdma".
std::string_view BackendKindName(BackendKind kind);

/// Payload only: no headers, no pings. Bytes count when the operation they belong to moves them.
struct BackendCounters {
  std::atomic<std::uint64_t> bytes_sent{0};      // puts made, gets served
  std::atomic<std::uint64_t> bytes_received{0};  // puts taken, gets made
  std::atomic<std::uint64_t> puts{0};            // ended with OK, at the side that asked
  std::atomic<std::uint64_t> gets{0};            // likewise
  std::atomic<std::uint64_t> messages_sent{0};
  std::atomic<std::uint64_t> messages_received{0};
};

/// Threads: atomics, relaxed; each is exact on its own, together they are no snapshot.
struct Counters {
  std::array<BackendCounters, kBackendKinds> by_backend;
  std::atomic<std::uint64_t> registrations{0};     // Context::Register, ever
  std::atomic<std::uint64_t> regions{0};           // registered now
  std::atomic<std::uint64_t> cache_hits{0};        // RegistrationCache
  std::atomic<std::uint64_t> pool_allocations{0};  // BufferPool: memory taken from the system
  std::atomic<std::uint64_t> pool_bytes{0};        // and how much, now
  std::atomic<std::uint64_t> refused{0};           // peers' operations: bad key, bounds, access
  std::atomic<std::uint64_t> messages_dropped{0};  // no handler
  std::atomic<std::uint64_t> connections{0};       // ever, both directions
  std::atomic<std::uint64_t> rejected{0};          // connections that did not prove the secret
  std::atomic<std::uint64_t> peers_lost{0};        // endpoints that ended with Unavailable

  BackendCounters& of(BackendKind kind) { return by_backend[static_cast<std::size_t>(kind)]; }
};

}  // namespace arcflow::transport
