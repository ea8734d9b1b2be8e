// SPDX-License-Identifier: Apache-2.0
// Chunks: pieces of memory on a channel: raw frames that say where their bytes belong.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"
#include "arcflow/net/channel.h"

namespace arcflow::control {

/// A raw frame is the place of its bytes (eight bytes, little endian), then the bytes.
inline constexpr std::size_t kChunkPlaceBytes = 8;
inline constexpr std::size_t kChunkBytes = std::size_t{1} << 20;        // of one frame, at most
inline constexpr std::size_t kChunkReadBytes = std::size_t{256} << 10;  // at once, from a channel
/// Sent and not acknowledged by the other side; bounds what is held beside the memory itself, where
/// there is no place yet that bytes could be read into.
inline constexpr std::uint64_t kChunkWindowBytes = 16 * kChunkBytes;

/// The frame of bytes that lie in a file or memfd at `at`. Errors: of pread; DataLoss for a file
/// that is shorter.
Result<net::SharedFrame> ChunkOf(const Fd& file, std::uint64_t at, std::size_t bytes);

/// The beginning of such a frame, for bytes that are sent from where they are.
std::string ChunkHead(std::uint64_t at, std::size_t bytes);
/// Where the `bytes` after this head belong. InvalidArgument when they leave [0, size).
Result<std::uint64_t> PlaceOfChunk(std::string_view head, std::size_t bytes, std::uint64_t size);

/// A frame's body, taken apart. InvalidArgument when it holds no byte, or leaves [0, size).
struct Chunk {
  std::uint64_t at = 0;
  std::string_view bytes;  // of `body`
};
Result<Chunk> ReadChunk(const std::string& body, std::uint64_t size);

}  // namespace arcflow::control
