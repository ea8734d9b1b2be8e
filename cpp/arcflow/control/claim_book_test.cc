// SPDX-License-Identifier: Apache-2.0
#include "arcflow/control/claim_book.h"

#include <gtest/gtest.h>

namespace arcflow::control {
namespace {

TEST(ClaimBookTest, APartitionGoesToTheFirstAttemptThatClaimsIt) {
  ClaimBook book;
  ASSERT_TRUE(book.Open("job", false));
  EXPECT_TRUE(book.Claim("job", 3, 10).granted);
  EXPECT_FALSE(book.Claim("job", 3, 11).granted);
  EXPECT_TRUE(book.Claim("job", 3, 10).granted) << "asked again";
  EXPECT_TRUE(book.Claim("job", 4, 11).granted);
}

TEST(ClaimBookTest, AStragglerOfAJobThatIsOverIsRefused) {
  ClaimBook book;
  EXPECT_FALSE(book.Claim("job", 0, 1).granted);
  ASSERT_TRUE(book.Open("job", false));
  EXPECT_TRUE(book.Claim("job", 0, 1).granted);
  book.Close("job");
  EXPECT_FALSE(book.Claim("job", 0, 1).granted);
  EXPECT_FALSE(book.Claim("job", 1, 2).granted);
}

TEST(ClaimBookTest, JobsAreApartAndSayWhetherTheyArePublishedWhole) {
  ClaimBook book;
  ASSERT_TRUE(book.Open("a", false));
  ASSERT_TRUE(book.Open("b", true));
  EXPECT_TRUE(book.Claim("a", 0, 1).granted);
  const ClaimBook::Answer second = book.Claim("b", 0, 2);
  EXPECT_TRUE(second.granted);
  EXPECT_TRUE(second.whole);
  EXPECT_FALSE(book.Claim("a", 0, 2).whole);
}

TEST(ClaimBookTest, TheNumberOfOpenJobsIsBounded) {
  ClaimBook book;
  for (std::size_t i = 0; i < ClaimBook::kMaxJobs; ++i)
    ASSERT_TRUE(book.Open(std::to_string(i), false));
  EXPECT_FALSE(book.Open("one more", false));
  EXPECT_TRUE(book.Open("0", false)) << "there already";
  book.Close("0");
  EXPECT_TRUE(book.Open("one more", false));
}

}  // namespace
}  // namespace arcflow::control
