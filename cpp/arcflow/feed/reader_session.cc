// SPDX-License-Identifier: Apache-2.0
// ReaderSession: packets of docs/design/spine.md, "Reader session".
#include "arcflow/feed/reader_session.h"

#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "arcflow/base/deadline.h"
#include "arcflow/feed/service_fields.h"
#include "arcflow/net/packet.h"

namespace arcflow::feed {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxDropsPerAnswer = 1024;

Deadline AtOnce() { return Deadline::After(std::chrono::nanoseconds(0)); }

/// The number of the enum, or its name.
Result<Remainder> ParseRemainder(const json& packet) {
  const auto field = packet.find("remainder");
  if (field != packet.end() && field->is_string()) {
    return RemainderFromName(field->get<std::string>());
  }
  ARC_ASSIGN(const std::uint64_t number,
             UintField(packet, "remainder", static_cast<std::uint64_t>(Remainder::kPartial)));
  return static_cast<Remainder>(number);
}

}  // namespace

json ErrorPacket(const Status& why) {
  return json{{"op", "error"}, {"code", CodeName(why.code())}, {"message", why.message()}};
}

ReaderSession::ReaderSession(FeedLog::ReaderId id, Fd socket, ReaderHost& host)
    : id_(id), socket_(std::move(socket)), host_(host) {}

ReaderSession::~ReaderSession() = default;

Status ReaderSession::Send(const json& packet, const std::vector<int>& fds) {
  const Status sent = net::SendPacket(socket_.get(), packet, fds, AtOnce());
  if (!sent.ok()) End();
  return sent;
}

Status ReaderSession::OnReadable() {
  while (alive_) {
    Result<std::optional<net::Message>> message = net::ReceiveMessage(socket_.get(), -1, AtOnce());
    if (message.ok() && !*message) {
      End();
      break;
    }
    Status status = message.status();
    if (status.code() == Code::kDeadlineExceeded) break;
    if (status.ok()) status = Handle(**message);
    if (status.ok()) continue;
    SendError(status);
    End();
    return status;
  }
  return Status::Ok();
}

Status ReaderSession::Handle(const net::Message& message) {
  if (!message.fds.empty()) return InvalidArgument("a reader's packet carries descriptors");
  const json& packet = *message.body;
  if (message.op == "get") return HandleGet(packet);
  if (message.op == "release") return HandleRelease(packet);
  if (message.op == "plan") return HandlePlan(packet);
  if (message.op == "stats") return HandleStats(packet);
  return InvalidArgument("unknown packet '" + message.op.substr(0, 32) + "' from a reader");
}

Status ReaderSession::HandleGet(const json& packet) {
  ARC_ASSIGN(const std::uint64_t row, UintField(packet, "row", FeedLog::kMaxRows));
  if (gets_.size() >= kMaxParked) {
    return InvalidArgument("more than " + std::to_string(kMaxParked) + " unanswered 'get' packets");
  }
  gets_.push_back(row);
  return Status::Ok();
}

Status ReaderSession::HandleRelease(const json& packet) {
  ARC_ASSIGN(const std::uint64_t segment, UintField(packet, "segment", kMaxNumber));
  std::uint64_t answers = FeedLog::kAllTimes;
  if (packet.contains("answers")) {
    ARC_ASSIGN(answers, UintField(packet, "answers", kMaxNumber));
  }
  return host_.Release(id_, segment, answers);
}

Status ReaderSession::HandlePlan(const json& packet) {
  PlanRequest request;
  ARC_ASSIGN(request.step, UintField(packet, "step", kMaxNumber));
  ARC_ASSIGN(request.batch, UintField(packet, "batch", kMaxNumber));
  if (request.batch == 0) return InvalidArgument("packet 'plan': field 'batch' is 0");
  ARC_ASSIGN(request.remainder, ParseRemainder(packet));
  if (plans_.size() >= kMaxParked) {
    return InvalidArgument("more than " + std::to_string(kMaxParked) +
                           " unanswered 'plan' packets");
  }
  plans_.push_back(request);
  return Status::Ok();
}

Status ReaderSession::HandleStats(const json& packet) {
  PassStats pass;
  ARC_ASSIGN(pass.used, UintField(packet, "used", kMaxNumber));
  ARC_ASSIGN(pass.padded, UintField(packet, "padded", kMaxNumber));
  ARC_ASSIGN(pass.dropped, UintField(packet, "dropped", kMaxNumber));
  ARC_ASSIGN(pass.steps, UintField(packet, "steps", kMaxNumber));
  ARC_ASSIGN(pass.wait_ns, UintField(packet, "wait_ns", kMaxNumber));
  const std::pair<const char*, std::uint64_t*> optional[] = {{"skipped", &pass.skipped},
                                                             {"bytes", &pass.bytes},
                                                             {"compute_ns", &pass.compute_ns},
                                                             {"duration_ns", &pass.duration_ns}};
  for (const auto& [key, value] : optional) {
    if (!packet.contains(key)) continue;
    ARC_ASSIGN(*value, UintField(packet, key, kMaxNumber));
  }
  ARC_ASSIGN(pass.complete, BoolField(packet, "complete"));
  host_.AddPass(id_, pass);
  return Status::Ok();
}

void ReaderSession::Pump() {
  while (alive_ && !gets_.empty() && AnswerGet(gets_.front())) gets_.pop_front();
  while (alive_ && !plans_.empty() && AnswerPlan(plans_.front())) plans_.pop_front();
}

/// False: parked.
bool ReaderSession::AnswerGet(std::uint64_t row) {
  const Result<ReaderHost::GetAnswer> answer = host_.Get(id_, row);
  waits_for_rows_ = false;
  if (!answer.ok()) {
    SendError(answer.status());
    return true;
  }
  if (const auto* park = std::get_if<ReaderHost::Park>(&*answer)) {
    waits_for_rows_ = park->for_rows;
    return false;
  }
  row_before_ = std::exchange(last_row_, row);
  if (const auto* end = std::get_if<ReaderHost::EndAnswer>(&*answer)) {
    Deliver(json{{"op", "end"}, {"rows", end->rows}}, {});
  } else {
    SendSegment(std::get<ReaderHost::SegmentAnswer>(*answer));
  }
  return true;
}

void ReaderSession::SendSegment(const ReaderHost::SegmentAnswer& answer) {
  const Segment& s = answer.segment;
  json packet{{"op", "segment"}, {"segment", s.number}, {"first_row", s.first_row},
              {"rows", s.rows},  {"closed", s.closed},  {"buffer", s.buffer},
              {"bytes", s.bytes}};
  if (s.skip > 0) packet["skip"] = s.skip;
  if (!forgotten_.empty()) {
    const std::size_t n = std::min(forgotten_.size(), kMaxDropsPerAnswer);
    const auto last = forgotten_.begin() + static_cast<std::ptrdiff_t>(n);
    packet["drop"] = std::vector<std::uint64_t>(forgotten_.begin(), last);
    forgotten_.erase(forgotten_.begin(), last);
  }
  std::vector<int> fds;
  if (known_.insert(s.buffer).second) fds.push_back(answer.fd);
  Deliver(packet, fds);
  if (answer.owner != nullptr) Forget(s.buffer);  // a copy is lent only once
}

bool ReaderSession::AnswerPlan(const PlanRequest& request) {
  const Result<KnownSteps> known = host_.Plan(id_, request.batch, request.remainder);
  if (!known.ok()) {
    SendError(known.status());
    return true;
  }
  if (known->steps <= request.step && !known->final) return false;
  Deliver(json{{"op", "plan"}, {"steps", known->steps}, {"final", known->final}}, {});
  return true;
}

void ReaderSession::SendError(const Status& why) { Deliver(ErrorPacket(why), {}); }

/// The few answers that can be under way fit into any socket's queue: one that is full means a
/// reader that is gone or mad.
void ReaderSession::Deliver(const json& packet, const std::vector<int>& fds) {
  if (!net::SendPacket(socket_.get(), packet, fds, AtOnce()).ok()) End();
}

void ReaderSession::End() {
  alive_ = false;
  ::shutdown(socket_.get(), SHUT_RDWR);
}

void ReaderSession::Forget(std::uint64_t buffer) {
  if (known_.erase(buffer) > 0) forgotten_.push_back(buffer);
}

void ReaderSession::ForgetOfOthers(std::uint64_t buffer) {
  known_.erase(buffer);
  if (std::find(forgotten_.begin(), forgotten_.end(), buffer) == forgotten_.end()) {
    forgotten_.push_back(buffer);
  }
}

std::uint64_t ReaderSession::passed_row() const {
  // Who asks for the row that there never is waits for the end of the feed and has read nothing.
  const bool follows = waits_for_rows_ && !gets_.empty() && gets_.front() < FeedLog::kMaxRows;
  return follows ? gets_.front() : row_before_;
}

}  // namespace arcflow::feed
