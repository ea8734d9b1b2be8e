// SPDX-License-Identifier: Apache-2.0
// Chunks: the layout of their frames.
#include "arcflow/control/chunks.h"

#include <sys/types.h>
#include <unistd.h>

#include <cerrno>
#include <memory>

#include "arcflow/net/frame.h"

namespace arcflow::control {
namespace {

/// The frame without its bytes.
std::string Begin(std::uint64_t at, std::size_t bytes) {
  std::string frame = net::RawFrameHeader(kChunkPlaceBytes + bytes);
  frame.reserve(frame.size() + kChunkPlaceBytes + bytes);
  for (int shift = 0; shift < 64; shift += 8)
    frame.push_back(static_cast<char>(at >> shift & 0xff));
  return frame;
}

}  // namespace

net::SharedFrame ChunkOf(std::uint64_t at, std::span<const std::byte> bytes) {
  std::string frame = Begin(at, bytes.size());
  frame.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return std::make_shared<const std::string>(std::move(frame));
}

Result<net::SharedFrame> ChunkOf(const Fd& file, std::uint64_t at, std::size_t bytes) {
  std::string frame = Begin(at, bytes);
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
  Chunk chunk;
  for (std::size_t i = 0; i < kChunkPlaceBytes; ++i)
    chunk.at |= std::uint64_t{static_cast<unsigned char>(body[i])} << (8 * i);
  chunk.bytes = std::string_view(body).substr(kChunkPlaceBytes);
  if (chunk.at > size || chunk.bytes.size() > size - chunk.at)
    return InvalidArgument("bytes outside of the memory they are for");
  return chunk;
}

}  // namespace arcflow::control
