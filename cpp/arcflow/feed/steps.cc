// SPDX-License-Identifier: Apache-2.0
// Agreement on steps as a pure function; docs/design/spine.md, "Agreement on steps".
#include "arcflow/feed/steps.h"

#include <algorithm>

namespace arcflow::feed {
namespace {

struct Summary {
  std::uint64_t least = UINT64_MAX;        // rows of the rank with fewest so far
  std::uint64_t most = 0;                  // rows of the rank with most so far
  std::uint64_t least_ended = UINT64_MAX;  // rows of the ended rank with fewest
  bool all_ended = true;
};

Summary Summarise(const std::vector<RankRows>& ranks) {
  Summary s;
  for (const RankRows& r : ranks) {
    s.least = std::min(s.least, r.rows);
    s.most = std::max(s.most, r.rows);
    s.all_ended = s.all_ended && r.ended;
    if (r.ended) s.least_ended = std::min(s.least_ended, r.rows);
  }
  return s;
}

std::uint64_t CeilDiv(std::uint64_t rows, std::uint64_t batch) {
  return rows / batch + (rows % batch != 0 ? 1 : 0);
}

Status UnequalRows(const std::string& feed, const std::vector<RankRows>& ranks) {
  constexpr std::size_t kShown = 64;
  std::string list;
  for (std::size_t i = 0; i < ranks.size() && i < kShown; ++i) {
    if (i > 0) list += ", ";
    list += "rank " + std::to_string(i) + ": " + std::to_string(ranks[i].rows);
    if (!ranks[i].ended) list += " so far";
  }
  if (ranks.size() > kShown) list += ", …";
  return FailedPrecondition(
      "the ranks hold different numbers of rows of feed '" + feed + "' (" + list +
      "), which remainder='refuse' does not allow; repartition the data evenly, or use 'pad' or "
      "'drop'");
}

/// While ranks are still open only full batches that every rank has can be promised.
Result<KnownSteps> DecideRefuse(const std::string& feed, const std::vector<RankRows>& ranks,
                                const Summary& s, std::uint64_t batch) {
  // A rank that ended below another's rows can never catch up.
  if (s.least_ended < s.most) return UnequalRows(feed, ranks);
  if (s.all_ended) return KnownSteps{CeilDiv(s.most, batch), true};
  return KnownSteps{s.least / batch, false};
}

}  // namespace

Result<KnownSteps> DecideSteps(const std::string& feed, const std::vector<RankRows>& ranks,
                               int own_rank, std::uint64_t batch, Remainder remainder) {
  if (batch == 0) return InvalidArgument("batch size must be above 0");
  if (own_rank < 0 || static_cast<std::size_t>(own_rank) >= ranks.size()) {
    return InvalidArgument("rank " + std::to_string(own_rank) + " is not one of " +
                           std::to_string(ranks.size()) + " ranks");
  }
  const Summary s = Summarise(ranks);
  switch (remainder) {
    case Remainder::kPad:
      return KnownSteps{CeilDiv(s.most, batch), s.all_ended};
    case Remainder::kDrop: {
      const std::uint64_t steps = s.least / batch;
      // Final as soon as one rank that has ended cannot fill another batch.
      const bool stuck = s.least_ended != UINT64_MAX && s.least_ended / batch == steps;
      return KnownSteps{steps, s.all_ended || stuck};
    }
    case Remainder::kRefuse:
      return DecideRefuse(feed, ranks, s, batch);
    case Remainder::kPartial: {
      const RankRows& own = ranks[static_cast<std::size_t>(own_rank)];
      return KnownSteps{own.ended ? CeilDiv(own.rows, batch) : own.rows / batch, own.ended};
    }
  }
  return InvalidArgument("unknown remainder " + std::to_string(static_cast<int>(remainder)));
}

Result<Remainder> RemainderFromName(const std::string& name) {
  if (name == "pad") return Remainder::kPad;
  if (name == "drop") return Remainder::kDrop;
  if (name == "refuse") return Remainder::kRefuse;
  if (name == "partial") return Remainder::kPartial;
  return InvalidArgument("remainder '" + name + "' is none of pad, drop, refuse, partial");
}

}  // namespace arcflow::feed
