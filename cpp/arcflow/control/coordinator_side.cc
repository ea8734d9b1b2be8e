// SPDX-License-Identifier: Apache-2.0
// The coordinator's part in feeding: what the driver tells all agents of a run that lives on, which
// attempts count, the results of nodes whose task is long gone, and where uneven ranks find rows.
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "arcflow/control/coordinator_internal.h"
#include "arcflow/control/coordinator_state.h"
#include "arcflow/control/fields.h"
#include "arcflow/control/hand_messages.h"
#include "arcflow/control/text.h"

namespace arcflow::control {

using nlohmann::json;

void CoordinatorState::Tell(const std::string& text) {
  const json message = json::parse(text, nullptr, /*allow_exceptions=*/false);
  std::string act;
  std::string job;
  bool whole = false;
  Fields(message, "side")
      .String("act", &act, kMaxNameBytes, Need::kRequired)
      .String("job", &job, kMaxNameBytes, Need::kOptional)
      .Bool("whole", &whole, Need::kOptional);
  if (act == "job") {
    claims_.Open(job, whole);
    return;
  }
  if (act == "over") claims_.Close(job);
  Broadcast(message);
}

Status CoordinatorState::OnClaim(MemberState& member, const json& message) {
  std::string job;
  std::int64_t partition = 0;
  std::int64_t attempt = 0;
  std::vector<int> ranks;
  Fields in(message, "claim");
  in.String("job", &job, kMaxNameBytes, Need::kRequired)
      .Int64("partition", &partition, 0, INT64_MAX, Need::kRequired)
      .Int64("attempt", &attempt, 0, INT64_MAX, Need::kRequired);
  const json* list = in.Find("ranks", Need::kRequired);
  if (list != nullptr && (!list->is_array() || list->size() > static_cast<std::size_t>(kMaxSize)))
    in.Fail("ranks", "is not a list of ranks");
  ARC_TRY(in.status());
  for (const json& rank : *list) {
    if (!rank.is_number_integer()) return InvalidArgument("claim.ranks holds what is no rank");
    ranks.push_back(rank.get<int>());
  }
  const ClaimBook::Answer answer = claims_.Claim(job, partition, attempt);
  const net::SharedFrame frame = ShareFrame({{"op", "claim"},
                                             {"job", job},
                                             {"partition", partition},
                                             {"attempt", attempt},
                                             {"granted", answer.granted},
                                             {"whole", answer.whole}});
  bool asker = false;  // hears it in any case
  for (const int rank : ranks) {
    const auto found = members_.find(rank);
    if (found == members_.end() || found->second->left) continue;
    asker = asker || rank == member.join.rank;
    SendOrAbort(*found->second->peer->channel, frame);
  }
  if (!asker) SendOrAbort(*member.peer->channel, frame);
  return Status::Ok();
}

Status CoordinatorState::OnEnough(MemberState& member, const json& message) {
  std::string feed;
  Fields in(message, "enough");
  in.String("feed", &feed, kMaxNameBytes, Need::kRequired);
  ARC_TRY(in.status());
  Emit(EventQueue::Kind::kPlain,
       {{"event", "enough"}, {"rank", member.join.rank}, {"feed", std::move(feed)}});
  return Status::Ok();
}

/// Who gives rows tells those who get them.
Status CoordinatorState::OnHand(MemberState& member, const json& message) {
  ARC_ASSIGN(const HandOffer offer, HandOffer::FromJson(message));
  const net::SharedFrame frame =
      ShareFrame(HandPlace{offer.feed, member.join.rank, offer.port}.ToJson());
  for (const int rank : offer.ranks) {
    const auto found = members_.find(rank);
    if (found == members_.end() || found->second->left) continue;
    SendOrAbort(*found->second->peer->channel, frame);
  }
  return Status::Ok();
}

Status CoordinatorState::OnResult(MemberState& member, json& message) {
  std::string data;
  bool last = false;
  Fields in(message, "result");
  in.String("data", &data, kControlFrameBytes, Need::kRequired)
      .Bool("last", &last, Need::kRequired);
  ARC_TRY(in.status());
  member.result_bytes += data.size();
  if (member.result_bytes > 2 * kMaxToldResultBytes)
    return InvalidArgument("the result of a node is too large");
  Emit(
      EventQueue::Kind::kPlain,
      {{"event", "result"}, {"rank", member.join.rank}, {"data", std::move(data)}, {"last", last}});
  return Status::Ok();
}

}  // namespace arcflow::control
