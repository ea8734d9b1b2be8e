// SPDX-License-Identifier: Apache-2.0
// Tests of uneven ranks with real agents and nodes: every row is read once, and who dies while rows
// move is named.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "arcflow/columnar/arrow_testing.h"
#include "arcflow/control/agent_testing.h"
#include "arcflow/feed/writer.h"

namespace arcflow::control {
namespace {

using agent_testing::AgentTest;
using agent_testing::Patience;
using nlohmann::json;
using testing_support::Eventually;

constexpr std::size_t kSegmentBytes = std::size_t{16} << 10;

columnar::Schema Numbered() {
  return {{{"id", columnar::DType::kInt64, columnar::Source::kScalar, {}},
           {"text", columnar::DType::kString, columnar::Source::kScalar, {}}}};
}

class AgentHandTest : public AgentTest {
 protected:
  /// Agents whose nodes do as `mode` says, and that even out the feed.
  void LaunchUneven(std::size_t size, const std::string& mode) {
    StartCoordinator(static_cast<int>(size));
    for (std::size_t rank = 0; rank < size; ++rank) {
      json config = Config(static_cast<int>(rank), static_cast<int>(size), mode);
      config["feeds"]["train"]["schema"] = Numbered().ToJson();
      config["feeds"]["train"]["balance"] = true;
      config["feed_memory_bytes"] = 8 * kSegmentBytes;
      config["segment_bytes"] = kSegmentBytes;
      config["local_dirs"] = {::testing::TempDir()};
      Launch(config);
    }
  }
  /// Rows numbered from 1000000 * rank.
  void Write(std::size_t rank, std::size_t rows) {
    using namespace columnar::testing;  // NOLINT: the builders
    feed::Writer writer({"train", Numbered(), kSegmentBytes}, *links_[rank]);
    for (std::size_t done = 0; done < rows;) {
      const std::size_t n = std::min<std::size_t>(500, rows - done);
      std::vector<std::int64_t> ids;
      std::vector<std::string> texts;
      for (std::size_t i = 0; i < n; ++i) {
        ids.push_back(static_cast<std::int64_t>(1'000'000 * rank + done + i));
        texts.push_back("row " + std::to_string(ids.back()));
      }
      const auto batch = RecordBatch(static_cast<std::int64_t>(n), Primitive("id", "l", ids),
                                     Strings("text", "u", texts));
      const Status status = writer.Append(batch->type, batch->array, Patience());
      ASSERT_TRUE(status.ok()) << status.ToString();
      done += n;
    }
    ASSERT_TRUE(writer.Finish().ok());
    ASSERT_TRUE(links_[rank]->End("train").ok());
  }
  /// What each node read; every row once in each pass, steps the same everywhere.
  void ExpectEveryRow(const std::vector<std::size_t>& rows) {
    std::vector<std::int64_t> wanted;
    std::size_t all = 0;
    for (std::size_t rank = 0; rank < rows.size(); ++rank) {
      all += rows[rank];
      for (std::size_t i = 0; i < rows[rank]; ++i)
        wanted.push_back(static_cast<std::int64_t>(1'000'000 * rank + i));
    }
    std::vector<std::int64_t> read[2];
    std::set<std::size_t> steps;
    for (auto& link : links_) {
      std::string result;
      const json outcome = OutcomeOf(*link, &result);
      ASSERT_EQ(outcome["status"], "ok") << outcome.dump();
      const json told = json::parse(result);
      EXPECT_EQ(told[0]["ids"], told[1]["ids"]) << "the second pass has the order of the first";
      const json& feed = outcome["rows"]["train"];
      for (std::size_t pass = 0; pass < 2; ++pass) {
        const auto ids = told[pass]["ids"].get<std::vector<std::int64_t>>();
        read[pass].insert(read[pass].end(), ids.begin(), ids.end());
        steps.insert(told[pass]["steps"].get<std::size_t>());
        EXPECT_EQ(feed["passes"][pass]["used"], ids.size());
        EXPECT_EQ(feed["rows"], ids.size());
        EXPECT_NEAR(static_cast<double>(ids.size()),
                    static_cast<double>(all) / static_cast<double>(rows.size()), 1.0);
      }
    }
    EXPECT_EQ(steps.size(), 1u);
    for (auto& ids : read) {
      std::sort(ids.begin(), ids.end());
      EXPECT_EQ(ids, wanted);
    }
  }
  /// Waits until the coordinator knows that a rank has all its rows.
  void AwaitEnded(std::size_t rank) {
    for (;;) {
      const json event = NextEvent("progress");
      ASSERT_TRUE(event.contains("ranks"));
      for (const json& one : event["ranks"]) {
        if (one["rank"] != rank || !one.contains("feeds") || !one["feeds"]["train"]["ended"])
          continue;
        std::this_thread::sleep_for(std::chrono::milliseconds(200));  // until the others know, too
        return;
      }
    }
  }
};

TEST_F(AgentHandTest, TenTimesTheRows) {
  LaunchUneven(4, "read");
  const std::vector<std::size_t> rows{2'000, 200, 200, 200};
  for (const std::size_t rank : {1, 2, 3, 0}) Write(rank, rows[rank]);
  ExpectEveryRow(rows);
}

TEST_F(AgentHandTest, OneGiantBeyondTheMemoryAndEmptyOnes) {
  LaunchUneven(3, "read");
  const std::vector<std::size_t> rows{0, 20'001, 0};
  for (const std::size_t rank : {0, 1, 2}) Write(rank, rows[rank]);
  ExpectEveryRow(rows);
}

TEST_F(AgentHandTest, TheDeathOfWhoTakesIsNamed) {
  LaunchUneven(2, "sleep");
  Write(1, 0);
  AwaitEnded(1);
  ::kill(links_[1]->pid(), SIGSTOP);  // it cannot take what comes
  Write(0, 3'000);
  AwaitEnded(0);
  ::kill(links_[1]->pid(), SIGKILL);
  const json outcome = OutcomeOf(*links_[0]);
  EXPECT_EQ(outcome["failure"]["rank"], 1) << outcome.dump();
  EXPECT_EQ(outcome["failure"]["cause"], "agent lost");
  EXPECT_EQ(outcome["rows"]["train"]["rows"], 1'500) << "each row counts once";
  EXPECT_EQ(outcome["rows"]["train"]["given"], 1'500);
}

TEST_F(AgentHandTest, TheDeathOfWhoGivesIsNamed) {
  LaunchUneven(2, "sleep");
  Write(1, 0);
  AwaitEnded(1);
  ::kill(links_[1]->pid(), SIGSTOP);
  Write(0, 3'000);
  AwaitEnded(0);
  ::kill(links_[0]->pid(), SIGKILL);
  ::kill(links_[1]->pid(), SIGCONT);  // it tries to take from who is gone
  const json outcome = OutcomeOf(*links_[1]);
  EXPECT_EQ(outcome["failure"]["rank"], 0) << outcome.dump();
  EXPECT_EQ(outcome["failure"]["cause"], "agent lost");
}

}  // namespace
}  // namespace arcflow::control
