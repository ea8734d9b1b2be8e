// SPDX-License-Identifier: Apache-2.0
// Mapping: RAII over mmap; CreateMemfd: an anonymous, sealed shared-memory file.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"

namespace arcflow {

/// A shared mapping of a whole file or memfd. Move-only; unmapped when destroyed.
/// Threads: immutable after construction; what the bytes hold is the user's business.
class Mapping {
 public:
  Mapping() = default;
  Mapping(Mapping&& o) noexcept;
  Mapping& operator=(Mapping&& o) noexcept;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping();

  /// Maps `size_bytes` of `fd` from its start. The file must be at least that long (checked with
  /// fstat, so that a peer that lies about a size gives InvalidArgument here and no SIGBUS later).
  /// `populate` faults the pages in at once.
  static Result<Mapping> Map(const Fd& fd, std::size_t size_bytes, bool writable, bool populate);

  std::byte* data() const { return static_cast<std::byte*>(base_); }
  std::size_t size_bytes() const { return size_; }
  bool valid() const { return base_ != nullptr; }

 private:
  void* base_ = nullptr;
  std::size_t size_ = 0;
};

/// Creates a memfd of exactly `size_bytes`, close-on-exec, sealed against shrinking and growing.
/// Errors: ResourceExhausted when the kernel refuses.
Result<Fd> CreateMemfd(const std::string& name, std::size_t size_bytes);

/// Forbids new writable mappings (F_SEAL_FUTURE_WRITE) and further seals: mappings that exist stay
/// writable, so the one writer may go on filling and recycling the memory while every reader can
/// map it read-only.
Status SealForReaders(const Fd& memfd);

/// A memfd that holds `bytes`, sealed for reading: for handing blobs of any size over a Unix
/// socket.
Result<Fd> MemfdFromBytes(const std::string& name, std::span<const std::byte> bytes);
/// All bytes of a memfd or file, at most `max_bytes` (InvalidArgument above).
Result<std::string> ReadAllBytes(const Fd& fd, std::size_t max_bytes);

}  // namespace arcflow
