// SPDX-License-Identifier: Apache-2.0
// Which failure is the first, whatever the order of the reports.
#include "arcflow/control/cause_order.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace arcflow::control {
namespace {

Failure Of(int rank, const std::string& cause, double time_s, bool peer_loss = false,
           const std::string& signal = "") {
  Failure failure;
  failure.rank = rank;
  failure.cause = cause;
  failure.time_s = time_s;
  failure.peer_loss = peer_loss;
  failure.signal = signal;
  return failure;
}

/// The rank to blame, and that it is the same in every order of arrival.
int Blamed(std::vector<Failure> failures) {
  const auto by_rank = [](const Failure& a, const Failure& b) { return a.rank < b.rank; };
  std::sort(failures.begin(), failures.end(), by_rank);
  const int blamed = failures[FirstCause(failures)].rank;
  while (std::next_permutation(failures.begin(), failures.end(), by_rank)) {
    EXPECT_EQ(failures[FirstCause(failures)].rank, blamed);
  }
  return blamed;
}

TEST(CauseOrderTest, AConsequenceNeverBeatsACause) {
  EXPECT_EQ(Blamed({Of(0, cause::kException, 10, true), Of(1, cause::kSignal, 11, false, "SIGKILL"),
                    Of(2, cause::kSignal, 9, true, "SIGABRT")}),
            1);
}

TEST(CauseOrderTest, TheEarlierCauseWins) {
  EXPECT_EQ(Blamed({Of(0, cause::kException, 10.2), Of(1, cause::kException, 10.1)}), 1);
}

TEST(CauseOrderTest, AnExitBesideADeathIsItsConsequence) {
  EXPECT_EQ(Blamed({Of(0, cause::kExit, 10.0), Of(1, cause::kSignal, 10.1, false, "SIGKILL")}), 1);
  EXPECT_EQ(Blamed({Of(0, cause::kSignal, 10.3, false, "SIGTERM"), Of(1, cause::kException, 10.2)}),
            1);
  EXPECT_EQ(Blamed({Of(0, cause::kAgentLost, 10.0), Of(1, cause::kOutOfMemory, 10.1)}), 1);
}

TEST(CauseOrderTest, AnExitLongBeforeIsTheCause) {
  EXPECT_EQ(Blamed({Of(0, cause::kExit, 10.0), Of(1, cause::kException, 11.0)}), 0);
}

TEST(CauseOrderTest, OfConsequencesOnlyTheEarliestIsTold) {
  EXPECT_EQ(Blamed({Of(0, cause::kException, 10, true), Of(1, cause::kException, 9, true)}), 1);
}

TEST(CauseOrderTest, OthersAreThoseThatTheFirstDidNotMake) {
  const std::vector<Failure> failures{
      Of(0, cause::kException, 10),       Of(1, cause::kException, 10.5),
      Of(2, cause::kException, 11, true), Of(3, cause::kExit, 10.2),
      Of(4, cause::kAgentLost, 10.1),     Of(1, cause::kFeeder, 12)};
  std::vector<int> ranks;
  for (const Failure& other : OtherCauses(failures, FirstCause(failures))) {
    ranks.push_back(other.rank);
  }
  EXPECT_EQ(ranks, (std::vector<int>{4, 1}));
}

}  // namespace
}  // namespace arcflow::control
