// SPDX-License-Identifier: Apache-2.0
// HandOver: the agent that gives rows.
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <utility>

#include "arcflow/base/log.h"
#include "arcflow/control/fields.h"
#include "arcflow/control/hand_over.h"
#include "arcflow/control/protocol.h"
#include "arcflow/control/text.h"
#include "arcflow/net/frame.h"

namespace arcflow::control {

using nlohmann::json;

namespace {

/// Sent and not yet written by the taker; bounds what both sides hold beside the segments.
constexpr std::uint64_t kWindowBytes = 4 * kHandChunkBytes;

/// The next bytes of a segment that were ever written; what was not is zero at the taker too.
struct Chunk {
  std::uint64_t at = 0;
  std::uint64_t bytes = 0;  // 0: there are none
};

Result<Chunk> NextChunk(const Fd& memory, std::uint64_t at, std::uint64_t end) {
  if (at >= end) return Chunk{};
  const off_t data = ::lseek(memory.get(), static_cast<off_t>(at), SEEK_DATA);
  if (data < 0 && errno == ENXIO) return Chunk{};
  if (data < 0) return Status::FromErrno(errno, "a segment");
  const off_t hole = ::lseek(memory.get(), data, SEEK_HOLE);
  if (hole < 0) return Status::FromErrno(errno, "a segment");
  const auto begin = static_cast<std::uint64_t>(data);
  const std::uint64_t stop = std::min(end, static_cast<std::uint64_t>(hole));
  if (begin >= stop) return Chunk{};
  return Chunk{begin, std::min<std::uint64_t>(stop - begin, kHandChunkBytes)};
}

/// A raw frame: the place, then the bytes.
Result<net::SharedFrame> ChunkFrame(const Fd& memory, const Chunk& chunk) {
  std::string frame = net::RawFrameHeader(kHandPlaceBytes + chunk.bytes);
  for (int shift = 0; shift < 64; shift += 8)
    frame.push_back(static_cast<char>(chunk.at >> shift & 0xff));
  std::size_t size = frame.size();
  frame.resize(size + chunk.bytes);
  for (std::uint64_t at = chunk.at; size < frame.size();) {
    const ssize_t n =
        ::pread(memory.get(), frame.data() + size, frame.size() - size, static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Status::FromErrno(errno, "a segment");
    if (n == 0) return DataLoss("a segment is shorter than it was");
    size += static_cast<std::size_t>(n);
    at += static_cast<std::uint64_t>(n);
  }
  return std::make_shared<const std::string>(std::move(frame));
}

}  // namespace

Status HandOver::Listen() {
  if (listener_) return Status::Ok();
  net::ListenerOptions options;
  options.host = options_.host;
  options.channel = options_.channel;
  Status last;
  for (std::uint32_t port = options_.first_port; port <= options_.last_port; ++port) {
    options.port = static_cast<std::uint16_t>(port);
    auto bound = net::Listener::Bind(
        loop_, options,
        [this, alive = std::weak_ptr(alive_)](std::shared_ptr<net::Channel> channel) {
          if (!alive.expired()) return OnAccepted(std::move(channel));
          channel->Close();
          return net::ChannelCallbacks{};
        });
    if (bound.ok()) {
      listener_ = std::move(*bound);
      return Status::Ok();
    }
    last = bound.status();
  }
  return last.WithContext("no port to give rows at");
}

net::ChannelCallbacks HandOver::OnAccepted(std::shared_ptr<net::Channel> channel) {
  const int id = next_taker_++;
  if (closed_) {
    channel->Close();
    return {};
  }
  takers_[id].channel = std::move(channel);
  net::ChannelCallbacks callbacks;
  callbacks.on_message = [this, id, alive = std::weak_ptr(alive_)](json& message) {
    if (!alive.expired()) OnTakerMessage(id, message);
  };
  callbacks.on_closed = [this, id, alive = std::weak_ptr(alive_)](const Status&) {
    if (alive.expired()) return;
    const auto taker = takers_.find(id);
    if (taker == takers_.end()) return;
    EndPiece(taker->second);
    takers_.erase(taker);
  };
  return callbacks;
}

void HandOver::OnTakerMessage(int id, const json& message) {
  const auto found = takers_.find(id);
  if (found == takers_.end()) return;
  Taker& taker = found->second;
  const Status status = Serve(taker, message);
  if (status.ok()) return;
  Log(LogLevel::kWarning, "rows for rank " + std::to_string(taker.rank) +
                              " are not given: " + status.ToString());
  Send(*taker.channel,
       {{"op", "error"}, {"code", CodeName(status.code())}, {"message", status.message()}});
  taker.channel->Close();
}

Status HandOver::Serve(Taker& taker, const json& message) {
  const std::string op = message.value("op", "");
  if (taker.rank < 0) {
    if (op != "hello") return InvalidArgument("the first message must be hello");
    ARC_ASSIGN(const HandHello hello, HandHello::FromJson(message));
    if (hello.run_id != options_.run_id) return FailedPrecondition("this is another run's agent");
    taker.rank = hello.rank;
    return Status::Ok();
  }
  if (op == "take") return OnTake(taker, message);
  if (op == "send") {
    if (!taker.piece || taker.sending) return InvalidArgument("send of nothing");
    taker.sending = true;
    return SendChunks(taker);
  }
  if (op == "got") {
    std::uint64_t bytes = 0;
    Fields in(message, "got");
    in.Uint64("bytes", &bytes, taker.under_way, Need::kRequired);
    ARC_TRY(in.status());
    taker.under_way -= bytes;
    return SendChunks(taker);
  }
  if (op == "taken") {
    std::string feed;
    Fields in(message, "taken");
    in.String("feed", &feed, kMaxNameBytes, Need::kRequired);
    ARC_TRY(in.status());
    EndPiece(taker);
    service_.Given(feed, taker.rank);
    return Status::Ok();
  }
  return InvalidArgument("unknown message " + CleanText(op, 64));
}

Status HandOver::OnTake(Taker& taker, const json& message) {
  ARC_ASSIGN(HandTake take, HandTake::FromJson(message));
  EndPiece(taker);
  ARC_ASSIGN(taker.piece, service_.BeginPiece(take.feed, taker.rank, take.row));
  taker.feed = std::move(take.feed);
  HandPiece piece;
  piece.row = take.row;
  piece.rows = taker.piece->rows;
  piece.skip = taker.piece->skip;
  piece.bytes = taker.piece->bytes;
  Send(*taker.channel, piece.ToJson());
  return Status::Ok();
}

/// As much as may be under way.
Status HandOver::SendChunks(Taker& taker) {
  while (taker.sending && taker.under_way < kWindowBytes) {
    ARC_ASSIGN(const Chunk chunk, NextChunk(taker.piece->memory, taker.at, taker.piece->bytes));
    if (chunk.bytes == 0) {
      EndPiece(taker);
      Send(*taker.channel, {{"op", "sent"}});
      break;
    }
    ARC_ASSIGN(net::SharedFrame frame, ChunkFrame(taker.piece->memory, chunk));
    taker.at = chunk.at + chunk.bytes;
    taker.under_way += chunk.bytes;
    ARC_TRY(taker.channel->SendFrame(std::move(frame)));
  }
  return Status::Ok();
}

/// Its segment may move again.
void HandOver::EndPiece(Taker& taker) {
  if (!taker.piece) return;
  const std::uint64_t segment = taker.piece->segment;
  taker.piece.reset();
  taker.sending = false;
  taker.at = 0;
  service_.EndPiece(taker.feed, taker.rank, segment);
}

}  // namespace arcflow::control
