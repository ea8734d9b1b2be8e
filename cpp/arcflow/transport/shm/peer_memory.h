// SPDX-License-Identifier: Apache-2.0
// PeerMemory: reads the memory of the process at the other end of a Unix socket, if the kernel lets
// us. Internal to the backend.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstddef>
#include <cstdint>

#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"

namespace arcflow::transport::shm {

inline constexpr std::size_t kProbeBytes = 32;
using Probe = std::array<std::uint8_t, kProbeBytes>;

/// The process at the other end, as the kernel names it (never as it names itself).
/// Threads: any; immutable after Find.
class PeerMemory {
 public:
  /// By the socket's credentials. Unavailable when the process lives in a pid namespace that ours
  /// does not contain, or is gone.
  static Result<PeerMemory> Find(int socket);
  PeerMemory() = default;

  pid_t pid() const { return pid_; }
  /// OK if `expected` stands at `address` in it: proof that the kernel allows reading, and that the
  /// pid is that of whoever told us both.
  Status Prove(std::uint64_t address, const Probe& expected) const;
  /// Copies. Unavailable when the process is gone, NotFound when its memory is not there.
  Status Read(std::uint64_t address, std::byte* to, std::size_t n) const;
  /// Whether the process lives. What Read() gave before came from it, not from one with its pid.
  bool alive() const;

 private:
  pid_t pid_ = 0;
  Fd pidfd_;
};

}  // namespace arcflow::transport::shm
