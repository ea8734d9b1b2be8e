// SPDX-License-Identifier: Apache-2.0
// ReaderLink: packets of docs/design/spine.md, "Reader session", as the node sends and receives
// them.
#include "arcflow/feed/reader_link.h"

#include <chrono>
#include <mutex>
#include <nlohmann/json.hpp>
#include <utility>

#include "arcflow/base/mapping.h"
#include "arcflow/feed/service_fields.h"
#include "arcflow/net/packet.h"

namespace arcflow::feed {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxSchemaBytes = std::size_t{16} << 20;
// Sending waits only while the agent's queue is full; an agent that reads nothing for so long is
// stuck.
constexpr auto kSendPatience = std::chrono::seconds(10);
constexpr auto kReleasePatience = std::chrono::seconds(1);

constexpr char kAgentGone[] = "the agent of this node is gone";

Result<std::uint64_t> Number(const json& packet, const char* key) {
  const auto it = packet.find(key);
  if (it == packet.end() || !it->is_number_integer() ||
      (!it->is_number_unsigned() && it->get<std::int64_t>() < 0) ||
      it->get<std::uint64_t>() > kMaxNumber) {
    return DataLoss("packet '" + packet.value("op", "") + "' from the agent: no valid '" + key +
                    "'");
  }
  return it->get<std::uint64_t>();
}

Result<bool> Flag(const json& packet, const char* key) {
  const auto it = packet.find(key);
  if (it == packet.end() || !it->is_boolean()) {
    return DataLoss("packet '" + packet.value("op", "") + "' from the agent: no valid '" + key +
                    "'");
  }
  return it->get<bool>();
}

Status ErrorOf(const json& packet) {
  const auto text = [&packet](const char* key) {
    const auto it = packet.find(key);
    return it != packet.end() && it->is_string() ? it->get<std::string>() : std::string();
  };
  const Code code = CodeFromName(text("code"));
  return Status(code == Code::kOk ? Code::kUnknown : code, text("message"));
}

const char* RemainderName(Remainder remainder) {
  switch (remainder) {
    case Remainder::kPad:
      return "pad";
    case Remainder::kDrop:
      return "drop";
    case Remainder::kRefuse:
      return "refuse";
    case Remainder::kPartial:
      return "partial";
  }
  return "pad";
}

}  // namespace

/// The session's socket. Views own it too, so the agent sees the session's end only when the last
/// lease is gone.
class ReaderLink::Session {
 public:
  explicit Session(Fd socket) : socket_(std::move(socket)) {}

  int socket() const { return socket_.get(); }

  Status Send(const json& packet) {
    FlushReleases();
    return net::SendPacket(socket(), packet, {}, Deadline::After(kSendPatience));
  }

  /// From any thread, from destructors: sends at once, because a writer may be waiting for this
  /// memory.
  void Release(std::uint64_t segment) noexcept {
    try {
      const Status sent =
          net::SendPacket(socket(), ReleasePacket(segment), {}, Deadline::After(kReleasePatience));
      if (sent.code() != Code::kDeadlineExceeded) return;  // sent, or there is nobody left to tell
      const std::lock_guard lock(mutex_);
      unsent_.push_back(segment);
    } catch (...) {  // no memory for a packet: the lease is kept until the socket closes
    }
  }

 private:
  static json ReleasePacket(std::uint64_t segment) {
    return json{{"op", "release"}, {"segment", segment}};
  }

  void FlushReleases() {
    std::vector<std::uint64_t> segments;
    {
      const std::lock_guard lock(mutex_);
      segments.swap(unsent_);
    }
    for (std::uint64_t segment : segments) Release(segment);
  }

  Fd socket_;
  std::mutex mutex_;
  std::vector<std::uint64_t> unsent_;  // by mutex_
};

/// What the agent counts as one lease, however many views and copies of the segment there are:
/// given back once.
class ReaderLink::Lease {
 public:
  Lease(std::shared_ptr<Session> session, std::uint64_t segment, std::shared_ptr<LeaseGauge> gauge)
      : session_(std::move(session)), segment_(segment), gauge_(std::move(gauge)) {
    gauge_->leased.fetch_add(1, std::memory_order_relaxed);
  }
  ~Lease() {
    gauge_->leased.fetch_sub(1, std::memory_order_relaxed);
    session_->Release(segment_);
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

 private:
  const std::shared_ptr<Session> session_;
  const std::uint64_t segment_;
  const std::shared_ptr<LeaseGauge> gauge_;
};

ReaderLink::ReaderLink(std::shared_ptr<Session> session, int cancel_fd)
    : session_(std::move(session)), cancel_fd_(cancel_fd) {}

Result<std::unique_ptr<ReaderLink>> ReaderLink::Open(int broker_fd, const std::string& feed,
                                                     int cancel_fd, Deadline deadline) {
  ARC_ASSIGN(auto pair, net::PacketPair());
  auto session = std::make_shared<Session>(std::move(pair.first));
  const json open{{"op", "open"}, {"what", "reader"}, {"feed", feed}};
  ARC_TRY(net::SendPacket(broker_fd, open, {pair.second.get()}, deadline));
  pair.second.reset();  // the agent's end must be the agent's alone, or we would never see it close
  ARC_ASSIGN(auto message, net::ReceiveMessage(session->socket(), cancel_fd, deadline));
  if (!message) return Unavailable(kAgentGone);
  if (message->op == "error") return ErrorOf(*message->body);
  if (message->op != "schema") {
    return DataLoss("expected packet 'schema' from the agent, got '" + message->op + "'");
  }
  std::unique_ptr<ReaderLink> link(new ReaderLink(std::move(session), cancel_fd));
  ARC_TRY(link->ReadSchema(*message->body, message->fds));
  return link;
}

/// The schema is in the packet, or, when it is too large for one, in a memfd beside it.
Status ReaderLink::ReadSchema(const json& packet, const std::vector<Fd>& fds) {
  json schema;
  if (const auto it = packet.find("schema"); it != packet.end()) {
    schema = *it;
  } else if (!fds.empty()) {
    ARC_ASSIGN(const std::string text, ReadAllBytes(fds[0], kMaxSchemaBytes));
    schema = json::parse(text, nullptr, false);
  }
  ARC_ASSIGN(schema_, columnar::Schema::FromJson(schema));
  ARC_ASSIGN(max_leases_, Number(packet, "max_leases"));
  if (packet.contains("read_once")) {
    ARC_ASSIGN(read_once_, Flag(packet, "read_once"));
  }
  if (packet.contains("exchange")) {
    ARC_ASSIGN(exchange_, Flag(packet, "exchange"));
  }
  ARC_ASSIGN(const std::uint64_t rank, Number(packet, "rank"));
  ARC_ASSIGN(const std::uint64_t size, Number(packet, "size"));
  rank_ = static_cast<int>(rank);
  size_ = static_cast<int>(size);
  return Status::Ok();
}

Status ReaderLink::AskRow(std::uint64_t row) {
  ARC_TRY(session_->Send(json{{"op", "get"}, {"row", row}}));
  row_asked_ = true;
  return Status::Ok();
}

Status ReaderLink::AskPlan(std::uint64_t step, std::uint64_t batch, Remainder remainder) {
  ARC_TRY(session_->Send(json{
      {"op", "plan"}, {"step", step}, {"batch", batch}, {"remainder", RemainderName(remainder)}}));
  plan_asked_ = true;
  return Status::Ok();
}

void ReaderLink::Tell(const json& packet) { static_cast<void>(session_->Send(packet)); }

Result<ReaderLink::Answer> ReaderLink::Receive(BufferMappings* mappings,
                                               const std::shared_ptr<LeaseGauge>& gauge,
                                               Deadline deadline) {
  ARC_ASSIGN(auto message, net::ReceiveMessage(session_->socket(), cancel_fd_, deadline));
  if (!message) return Unavailable(kAgentGone);
  const json& packet = *message->body;
  if (message->op == "error") return ErrorOf(packet);
  if (message->op == "plan" && plan_asked_) {
    plan_asked_ = false;
    PlanAnswer answer;
    ARC_ASSIGN(answer.steps, Number(packet, "steps"));
    ARC_ASSIGN(answer.final, Flag(packet, "final"));
    return Answer(answer);
  }
  if (message->op == "end" && row_asked_) {
    row_asked_ = false;
    ARC_ASSIGN(const std::uint64_t rows, Number(packet, "rows"));
    return Answer(EndAnswer{rows});
  }
  if (message->op == "segment" && row_asked_) {
    row_asked_ = false;
    ARC_ASSIGN(SegmentAnswer answer, ReadSegment(packet, message->fds, mappings, gauge));
    return Answer(std::move(answer));
  }
  return DataLoss("unexpected packet '" + message->op + "' from the agent");
}

Result<ReaderLink::SegmentAnswer> ReaderLink::ReadSegment(
    const json& packet, const std::vector<Fd>& fds, BufferMappings* mappings,
    const std::shared_ptr<LeaseGauge>& gauge) {
  SegmentAnswer answer;
  ARC_ASSIGN(answer.segment, Number(packet, "segment"));
  ARC_ASSIGN(answer.first_row, Number(packet, "first_row"));
  ARC_ASSIGN(answer.rows, Number(packet, "rows"));
  ARC_ASSIGN(answer.closed, Flag(packet, "closed"));
  ARC_ASSIGN(const std::uint64_t buffer, Number(packet, "buffer"));
  ARC_ASSIGN(const std::uint64_t bytes, Number(packet, "bytes"));
  std::uint64_t skip = 0;
  if (packet.contains("skip")) {
    ARC_ASSIGN(skip, Number(packet, "skip"));
  }
  if (const auto drop = packet.find("drop"); drop != packet.end() && drop->is_array()) {
    for (const json& id : *drop) {
      if (!id.is_number_unsigned()) continue;
      mappings->Drop(id.get<std::uint64_t>());
      IdleMappings::Instance().Drop(id.get<std::uint64_t>());
    }
  }
  const bool again = answer.segment == last_segment_;
  answer.view = again && buffer == last_buffer_ ? last_view_.lock() : nullptr;
  if (answer.view != nullptr) {
    ARC_TRY(answer.view->Grow(answer.rows));
    return answer;
  }
  std::shared_ptr<const Lease> lease = again ? last_lease_.lock() : nullptr;
  if (lease == nullptr) lease = std::make_shared<const Lease>(session_, answer.segment, gauge);
  static const Fd kNoFd;
  ARC_ASSIGN(auto mapping, mappings->Get(buffer, bytes, fds.empty() ? kNoFd : fds[0]));
  ARC_ASSIGN(answer.view,
             SegmentView::Attach(std::move(mapping), schema_, answer.rows, gauge, lease, skip));
  last_segment_ = answer.segment;
  last_buffer_ = buffer;
  last_lease_ = lease;
  last_view_ = answer.view;
  return answer;
}

}  // namespace arcflow::feed
