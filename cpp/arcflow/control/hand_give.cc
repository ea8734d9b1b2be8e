// SPDX-License-Identifier: Apache-2.0
// HandOver: the agent that gives rows.
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <utility>

#include "arcflow/base/log.h"
#include "arcflow/control/chunks.h"
#include "arcflow/control/fields.h"
#include "arcflow/control/hand_over.h"
#include "arcflow/control/protocol.h"
#include "arcflow/control/text.h"

namespace arcflow::control {

using nlohmann::json;

namespace {

/// The next bytes of a segment that were ever written; what was not is zero at the taker too.
struct Extent {
  std::uint64_t at = 0;
  std::size_t bytes = 0;  // 0: there are none
};

Result<Extent> NextExtent(const Fd& memory, std::uint64_t at, std::uint64_t end) {
  if (at >= end) return Extent{};
  const off_t data = ::lseek(memory.get(), static_cast<off_t>(at), SEEK_DATA);
  if (data < 0 && errno == ENXIO) return Extent{};
  if (data < 0) return Status::FromErrno(errno, "a segment");
  const off_t hole = ::lseek(memory.get(), data, SEEK_HOLE);
  if (hole < 0) return Status::FromErrno(errno, "a segment");
  const auto begin = static_cast<std::uint64_t>(data);
  const std::uint64_t stop = std::min(end, static_cast<std::uint64_t>(hole));
  if (begin >= stop) return Extent{};
  return Extent{begin,
                static_cast<std::size_t>(std::min<std::uint64_t>(stop - begin, kChunkBytes))};
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
  Log(LogLevel::kWarning,
      "rows for rank " + std::to_string(taker.rank) + " are not given: " + status.ToString());
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
    if (taker.feed == feed) EndPiece(taker);
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
  while (taker.sending && taker.under_way < kChunkWindowBytes) {
    ARC_ASSIGN(const Extent next, NextExtent(taker.piece->memory, taker.at, taker.piece->bytes));
    if (next.bytes == 0) {
      EndPiece(taker);
      Send(*taker.channel, {{"op", "sent"}});
      break;
    }
    ARC_ASSIGN(net::SharedFrame frame, ChunkOf(taker.piece->memory, next.at, next.bytes));
    taker.at = next.at + next.bytes;
    taker.under_way += next.bytes;
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
