// SPDX-License-Identifier: Apache-2.0
// Mapping and memfd helpers: sizes are checked against fstat before anything is mapped or read.
#include "arcflow/base/mapping.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <limits>
#include <utility>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010  // linux/fcntl.h has it since 5.1, libc headers not always
#endif

namespace arcflow {
namespace {

constexpr auto kMaxFileBytes = static_cast<std::size_t>(std::numeric_limits<off_t>::max());

/// Size of the file behind `fd`; InvalidArgument for anything that is not a regular file (a memfd
/// is one).
Result<std::size_t> FileSize(const Fd& fd) {
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) return Status::FromErrno(errno, "fstat");
  if (!S_ISREG(st.st_mode)) return InvalidArgument("descriptor is not a regular file or memfd");
  return static_cast<std::size_t>(st.st_size);
}

Status WriteAll(const Fd& fd, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd.get(), bytes.data(), bytes.size());
    if (n < 0) {
      if (errno == EINTR) continue;
      return Status::FromErrno(errno, "write to memfd");
    }
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
  return Status::Ok();
}

Status AddSeals(const Fd& fd, int seals) {
  if (::fcntl(fd.get(), F_ADD_SEALS, seals) != 0) return Status::FromErrno(errno, "seal memfd");
  return Status::Ok();
}

Result<Fd> OpenMemfd(const std::string& name) {
  // A name is only a label in /proc/<pid>/fd; the kernel takes at most 249 bytes.
  Fd fd(::memfd_create(name.substr(0, 200).c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return Status::FromErrno(errno, "memfd_create");
  return fd;
}

}  // namespace

Mapping::Mapping(Mapping&& o) noexcept
    : base_(std::exchange(o.base_, nullptr)), size_(std::exchange(o.size_, 0)) {}

Mapping& Mapping::operator=(Mapping&& o) noexcept {
  std::swap(base_, o.base_);
  std::swap(size_, o.size_);
  return *this;
}

Mapping::~Mapping() {
  if (base_ != nullptr) ::munmap(base_, size_);
}

Result<Mapping> Mapping::Map(const Fd& fd, std::size_t size_bytes, bool writable, bool populate) {
  if (size_bytes == 0) return InvalidArgument("cannot map zero bytes");
  ARC_ASSIGN(const std::size_t file_bytes, FileSize(fd));
  if (file_bytes < size_bytes) {
    return InvalidArgument("file of " + std::to_string(file_bytes) + " bytes is smaller than the " +
                           std::to_string(size_bytes) + " bytes announced");
  }
  const int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
  const int flags = MAP_SHARED | (populate ? MAP_POPULATE : 0);
  void* base = ::mmap(nullptr, size_bytes, protection, flags, fd.get(), 0);
  if (base == MAP_FAILED) return Status::FromErrno(errno, "mmap");
  Mapping mapping;
  mapping.base_ = base;
  mapping.size_ = size_bytes;
  return mapping;
}

Result<Fd> CreateMemfd(const std::string& name, std::size_t size_bytes) {
  if (size_bytes > kMaxFileBytes) return InvalidArgument("memfd size out of range");
  ARC_ASSIGN(Fd fd, OpenMemfd(name));
  if (::ftruncate(fd.get(), static_cast<off_t>(size_bytes)) != 0) {
    return ResourceExhausted("memfd of " + std::to_string(size_bytes) +
                             " bytes: " + Status::FromErrno(errno, "ftruncate").ToString());
  }
  ARC_TRY(AddSeals(fd, F_SEAL_SHRINK | F_SEAL_GROW));
  return fd;
}

Status SealForReaders(const Fd& memfd) {
  return AddSeals(memfd, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL);
}

Result<Fd> MemfdFromBytes(const std::string& name, std::span<const std::byte> bytes) {
  ARC_ASSIGN(Fd fd, OpenMemfd(name));
  ARC_TRY(WriteAll(fd, bytes));
  ARC_TRY(AddSeals(fd, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL));
  return fd;
}

Result<std::string> ReadAllBytes(const Fd& fd, std::size_t max_bytes) {
  ARC_ASSIGN(const std::size_t size, FileSize(fd));
  if (size > max_bytes) {
    return InvalidArgument("file of " + std::to_string(size) + " bytes is over the bound of " +
                           std::to_string(max_bytes));
  }
  std::string out(size, '\0');
  std::size_t done = 0;
  while (done < size) {  // pread: the position is shared with whoever passed the descriptor
    const ssize_t n = ::pread(fd.get(), out.data() + done, size - done, static_cast<off_t>(done));
    if (n < 0) {
      if (errno == EINTR) continue;
      return Status::FromErrno(errno, "read");
    }
    if (n == 0) return DataLoss("file shrank while it was read");
    done += static_cast<std::size_t>(n);
  }
  return out;
}

}  // namespace arcflow
