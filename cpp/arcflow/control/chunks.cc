// SPDX-License-Identifier: Apache-2.0
// Chunks: the layout of their frames.
#include "arcflow/control/chunks.h"

#include <sys/types.h>
#include <unistd.h>

#include <cerrno>
#include <memory>

#include "arcflow/net/frame.h"

namespace arcflow::control {

std::string ChunkHead(std::uint64_t at, std::size_t bytes) {
  std::string head = net::RawFrameHeader(kChunkPlaceBytes + bytes);
  for (int shift = 0; shift < 64; shift += 8) head.push_back(static_cast<char>(at >> shift & 0xff));
  return head;
}

Result<std::uint64_t> PlaceOfChunk(std::string_view head, std::size_t bytes, std::uint64_t size) {
  std::uint64_t at = 0;
  for (std::size_t i = 0; i < kChunkPlaceBytes; ++i)
    at |= std::uint64_t{static_cast<unsigned char>(head[i])} << (8 * i);
  if (at > size || bytes > size - at)
    return InvalidArgument("bytes outside of the memory they are for");
  return at;
}

Result<net::SharedFrame> ChunkOf(const Fd& file, std::uint64_t at, std::size_t bytes) {
  std::string frame = ChunkHead(at, bytes);
  std::size_t size = frame.size();
  frame.resize(size + bytes);
  while (size < frame.size()) {
    const ssize_t n =
        ::pread(file.get(), frame.data() + size, frame.size() - size, static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Status::FromErrno(errno, "reading memory to send");
    if (n == 0) return DataLoss("memory to send is shorter than it was");
    size += static_cast<std::size_t>(n);
    at += static_cast<std::uint64_t>(n);
  }
  return std::make_shared<const std::string>(std::move(frame));
}

Result<Chunk> ReadChunk(const std::string& body, std::uint64_t size) {
  if (body.size() <= kChunkPlaceBytes) return InvalidArgument("a frame without bytes");
  const std::string_view bytes = std::string_view(body).substr(kChunkPlaceBytes);
  ARC_ASSIGN(const std::uint64_t at, PlaceOfChunk(body, bytes.size(), size));
  return Chunk{at, bytes};
}

}  // namespace arcflow::control
