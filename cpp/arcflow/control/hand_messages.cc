// SPDX-License-Identifier: Apache-2.0
// Fields and bounds of the messages that hand rows over.
#include "arcflow/control/hand_messages.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "arcflow/control/fields.h"
#include "arcflow/control/protocol.h"
#include "arcflow/feed/log.h"

namespace arcflow::control {

using nlohmann::json;

namespace {

constexpr std::uint64_t kMaxSegmentBytes = std::uint64_t{1} << 48;

}  // namespace

json HandOffer::ToJson() const {
  return {{"op", "hand"}, {"feed", feed}, {"port", port}, {"ranks", ranks}};
}

Result<HandOffer> HandOffer::FromJson(const json& object) {
  HandOffer offer;
  Fields in(object, "hand");
  in.String("feed", &offer.feed, kMaxNameBytes, Need::kRequired)
      .Port("port", &offer.port, Need::kRequired);
  const json* ranks = in.Find("ranks", Need::kRequired);
  if (ranks != nullptr &&
      (!ranks->is_array() || ranks->size() > static_cast<std::size_t>(kMaxSize)))
    in.Fail("ranks", "is not a list of ranks");
  ARC_TRY(in.status());
  for (const json& rank : *ranks) {
    const bool whole = rank.is_number_integer() && rank >= 0 && rank < kMaxSize;
    if (!whole) return InvalidArgument("hand.ranks holds what is no rank");
    offer.ranks.push_back(rank.get<int>());
  }
  return offer;
}

json HandPlace::ToJson() const {
  return {{"op", "hand"}, {"feed", feed}, {"rank", rank}, {"port", port}};
}

Result<HandPlace> HandPlace::FromJson(const json& object) {
  HandPlace place;
  Fields in(object, "hand");
  in.String("feed", &place.feed, kMaxNameBytes, Need::kRequired)
      .Int("rank", &place.rank, 0, kMaxSize - 1, Need::kRequired)
      .Port("port", &place.port, Need::kRequired);
  ARC_TRY(in.status());
  return place;
}

json HandHello::ToJson() const { return {{"op", "hello"}, {"run_id", run_id}, {"rank", rank}}; }

Result<HandHello> HandHello::FromJson(const json& object) {
  HandHello hello;
  Fields in(object, "hello");
  in.String("run_id", &hello.run_id, kMaxNameBytes, Need::kRequired)
      .Int("rank", &hello.rank, 0, kMaxSize - 1, Need::kRequired);
  ARC_TRY(in.status());
  return hello;
}

json HandTake::ToJson() const { return {{"op", "take"}, {"feed", feed}, {"row", row}}; }

Result<HandTake> HandTake::FromJson(const json& object) {
  HandTake take;
  Fields in(object, "take");
  in.String("feed", &take.feed, kMaxNameBytes, Need::kRequired)
      .Uint64("row", &take.row, feed::FeedLog::kMaxRows, Need::kRequired);
  ARC_TRY(in.status());
  return take;
}

json HandPiece::ToJson() const {
  return {{"op", "piece"}, {"row", row}, {"rows", rows}, {"skip", skip}, {"bytes", bytes}};
}

Result<HandPiece> HandPiece::FromJson(const json& object) {
  HandPiece piece;
  Fields in(object, "piece");
  in.Uint64("row", &piece.row, feed::FeedLog::kMaxRows, Need::kRequired)
      .Uint64("rows", &piece.rows, feed::FeedLog::kMaxRows, Need::kRequired)
      .Uint64("skip", &piece.skip, feed::FeedLog::kMaxRows, Need::kRequired)
      .Uint64("bytes", &piece.bytes, kMaxSegmentBytes, Need::kRequired);
  if (in.ok() && piece.rows == 0) in.Fail("rows", "is 0");
  if (in.ok() && piece.bytes == 0) in.Fail("bytes", "is 0");
  ARC_TRY(in.status());
  return piece;
}

}  // namespace arcflow::control
