// SPDX-License-Identifier: Apache-2.0
// HandOver: the agent that takes rows, piece by piece.
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>
#include <utility>

#include "arcflow/base/mapping.h"
#include "arcflow/control/chunks.h"
#include "arcflow/control/fields.h"
#include "arcflow/control/hand_over.h"
#include "arcflow/control/protocol.h"
#include "arcflow/control/text.h"

namespace arcflow::control {

using nlohmann::json;

namespace {

Status WriteAt(const Fd& memory, Chunk chunk) {
  while (!chunk.bytes.empty()) {
    const ssize_t n = ::pwrite(memory.get(), chunk.bytes.data(), chunk.bytes.size(),
                               static_cast<off_t>(chunk.at));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Status::FromErrno(errno, "memory for rows of another rank");
    chunk.bytes.remove_prefix(static_cast<std::size_t>(n));
    chunk.at += static_cast<std::uint64_t>(n);
  }
  return Status::Ok();
}

Status ErrorOf(const json& message) {
  std::string code;
  std::string text;
  Fields(message, "error").Text("code", &code, kMaxNameBytes).Text("message", &text, kMaxTextBytes);
  const Code known = CodeFromName(code);
  return Status(known == Code::kOk ? Code::kUnknown : known, text);
}

}  // namespace

/// Asks for the next piece, unless one is under way or its giver has not said where it is.
void HandOver::Next() {
  if (closed_ || failed_ || incoming_ || jobs_.empty()) return;
  const Job& job = jobs_.front();
  const int giver = job.move.from;
  if (!offers_.contains({giver, job.offer})) return;
  if (!sources_.contains(giver)) Connect(giver, job.offer);
  incoming_.emplace();
  incoming_->row = job.move.first_row;
  Send(*sources_.at(giver).channel, HandTake{job.feed, incoming_->row}.ToJson());
}

/// Whether that connection is the one to `rank` now.
bool HandOver::Current(int rank, std::uint64_t source) const {
  const auto found = sources_.find(rank);
  return found != sources_.end() && found->second.number == source;
}

void HandOver::Connect(int rank, const std::string& offer) {
  const std::uint64_t number = next_source_++;
  net::ChannelCallbacks callbacks;
  callbacks.on_message = [this, rank, number, alive = std::weak_ptr(alive_)](json& message) {
    if (!alive.expired() && Current(rank, number)) OnSource(rank, message);
  };
  callbacks.on_raw = [this, rank, number, alive = std::weak_ptr(alive_)](std::string& body) {
    if (alive.expired() || !Current(rank, number)) return;
    if (const Status status = OnChunk(body); !status.ok()) Fail(rank, status);
  };
  callbacks.on_closed = [this, rank, number, alive = std::weak_ptr(alive_)](const Status& why) {
    if (alive.expired() || !Current(rank, number)) return;
    sources_.erase(rank);
    if (!jobs_.empty() && jobs_.front().move.from == rank && incoming_)
      Fail(rank, why.ok() ? Unavailable("it closed the connection") : why);
  };
  sources_[rank] = {
      number, net::Channel::Connect(loop_, callbacks_.host_of(rank), offers_.at({rank, offer}),
                                    options_.channel, std::move(callbacks),
                                    Deadline::AfterSeconds(options_.connect_timeout_s))};
  Send(*sources_.at(rank).channel, HandHello{options_.run_id, options_.rank}.ToJson());
}

void HandOver::OnSource(int rank, const json& message) {
  if (!incoming_ || jobs_.front().move.from != rank) return;
  const std::string op = message.value("op", "");
  Status status;
  if (op == "piece") {
    status = OnPiece(message);
  } else if (op == "sent") {
    status = OnSent();
  } else if (op == "error") {
    status = ErrorOf(message);
  } else {
    status = InvalidArgument("unknown message " + CleanText(op, 64));
  }
  if (!status.ok()) Fail(rank, status);
}

Status HandOver::OnPiece(const json& message) {
  ARC_ASSIGN(incoming_->piece, HandPiece::FromJson(message));
  const feed::Move& move = jobs_.front().move;
  const HandPiece& piece = incoming_->piece;
  if (incoming_->memory.valid() || piece.row != incoming_->row ||
      piece.rows > move.first_row + move.rows - piece.row) {
    return InvalidArgument("a piece that was not asked for");
  }
  const std::string feed = jobs_.front().feed;  // the answer may come at once, and end the job
  return service_.AskRoom(feed, static_cast<std::size_t>(piece.bytes));
}

bool HandOver::Route(const json& packet) {
  if (!packet.value("handed", false)) return false;
  if (closed_ || failed_ || !incoming_) return true;
  const int giver = jobs_.front().move.from;
  if (const Status status = OnRoom(packet); !status.ok()) Fail(giver, status);
  return true;
}

Status HandOver::OnRoom(const json& packet) {
  const std::string feed = jobs_.front().feed;
  if (packet.value("op", "") == "refused") {
    const Status why = ErrorOf(packet);
    if (why.code() != Code::kCancelled) return why.WithContext("feed '" + feed + "'");
    // The node wants no more of them; who would have given them keeps them.
    incoming_.reset();
    std::erase_if(jobs_, [&](const Job& job) { return job.feed == feed; });
    Next();
    return Status::Ok();
  }
  incoming_->buffer = packet.value("buffer", std::uint64_t{0});
  incoming_->bytes = packet.value("bytes", std::uint64_t{0});
  ARC_ASSIGN(incoming_->memory,
             CreateMemfd("arcflow-" + feed, static_cast<std::size_t>(incoming_->bytes)));
  Send(*sources_.at(jobs_.front().move.from).channel, {{"op", "send"}});
  return Status::Ok();
}

Status HandOver::OnChunk(const std::string& body) {
  if (!incoming_) return Status::Ok();  // too late
  if (!incoming_->memory.valid()) return InvalidArgument("bytes that were not asked for");
  ARC_ASSIGN(const Chunk chunk, ReadChunk(body, incoming_->piece.bytes));
  ARC_TRY(WriteAt(incoming_->memory, chunk));
  Send(*sources_.at(jobs_.front().move.from).channel,
       {{"op", "got"}, {"bytes", chunk.bytes.size()}});
  return Status::Ok();
}

/// The piece is here: its rows are ours.
Status HandOver::OnSent() {
  if (!incoming_->memory.valid()) return InvalidArgument("the end of a piece that did not begin");
  ARC_TRY(SealForReaders(incoming_->memory));
  const Job job = jobs_.front();
  Incoming done = std::exchange(*incoming_, Incoming{});
  incoming_->row = done.row + done.piece.rows;
  const bool last = incoming_->row == job.move.first_row + job.move.rows;
  if (last) {
    incoming_.reset();
    jobs_.pop_front();
  }
  // Before what follows from its last rows, which may ask the same giver for more.
  if (last && !job.exchanged())
    Send(*sources_.at(job.move.from).channel, {{"op", "taken"}, {"feed", job.feed}});
  ARC_TRY(service_.AddPiece(job.feed, done.buffer, std::move(done.memory), done.piece.rows,
                            done.piece.skip));
  if (closed_ || failed_) return Status::Ok();
  if (last) {
    Next();
  } else if (incoming_) {
    Send(*sources_.at(job.move.from).channel, HandTake{job.feed, incoming_->row}.ToJson());
  }
  return Status::Ok();
}

}  // namespace arcflow::control
