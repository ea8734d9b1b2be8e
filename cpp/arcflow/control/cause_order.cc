// SPDX-License-Identifier: Apache-2.0
// The order of failures.
#include "arcflow/control/cause_order.h"

#include <algorithm>
#include <set>
#include <tuple>

namespace arcflow::control {
namespace {

double TimeOf(const Failure& failure) {
  return failure.time_s + (StandingOf(failure) == Standing::kAmbiguous ? kClockTolerance_s : 0.0);
}

std::tuple<bool, double> OrderOf(const Failure& failure) {
  return {StandingOf(failure) == Standing::kConsequence, TimeOf(failure)};
}

}  // namespace

Standing StandingOf(const Failure& failure) {
  if (failure.peer_loss) return Standing::kConsequence;
  const std::string& cause = failure.cause;
  if (cause == cause::kSignal) {
    const bool asked =
        failure.signal == "SIGTERM" || failure.signal == "SIGINT" || failure.signal == "SIGHUP";
    return asked ? Standing::kAmbiguous : Standing::kCause;
  }
  if (cause == cause::kFeeder) {  // with a type it told what it could not feed
    return failure.type.empty() ? Standing::kAmbiguous : Standing::kCause;
  }
  const bool ambiguous = cause == cause::kExit || cause == cause::kAgentLost ||
                         cause == cause::kInterrupted || cause == cause::kDriverLost;
  return ambiguous ? Standing::kAmbiguous : Standing::kCause;
}

std::size_t FirstCause(const std::vector<Failure>& failures) {
  const auto first =
      std::min_element(failures.begin(), failures.end(),
                       [](const Failure& a, const Failure& b) { return OrderOf(a) < OrderOf(b); });
  return static_cast<std::size_t>(first - failures.begin());
}

std::vector<Failure> OtherCauses(const std::vector<Failure>& failures, std::size_t first) {
  std::vector<Failure> others;
  for (std::size_t i = 0; i < failures.size(); ++i) {
    const bool own = StandingOf(failures[i]) == Standing::kCause ||
                     failures[i].cause == cause::kAgentLost;  // no node's failure takes an agent
    if (i != first && own && !failures[i].peer_loss) others.push_back(failures[i]);
  }
  std::sort(others.begin(), others.end(),
            [](const Failure& a, const Failure& b) { return a.time_s < b.time_s; });
  std::set<int> ranks{failures[first].rank};
  std::erase_if(others, [&](const Failure& f) { return !ranks.insert(f.rank).second; });
  return others;
}

}  // namespace arcflow::control
