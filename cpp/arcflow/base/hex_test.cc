// SPDX-License-Identifier: Apache-2.0
// Bytes survive their text; other text is refused.
#include "arcflow/base/hex.h"

#include <gtest/gtest.h>

namespace arcflow {
namespace {

TEST(HexTest, BytesSurviveTheirText) {
  std::string all;
  for (int i = 0; i < 256; ++i) all += static_cast<char>(i);
  EXPECT_EQ(ToHex(all).substr(0, 6), "000102");
  EXPECT_EQ(*FromHex(ToHex(all)), all);
  EXPECT_EQ(*FromHex(""), "");
}

TEST(HexTest, OtherTextIsRefused) {
  for (const char* const text : {"0", "0g", "AB", "0x11", "001"}) {
    EXPECT_EQ(FromHex(text).status().code(), Code::kInvalidArgument) << text;
  }
}

}  // namespace
}  // namespace arcflow
