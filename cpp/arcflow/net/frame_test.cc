// SPDX-License-Identifier: Apache-2.0
// Frames: round trip, arbitrary splits, bounds.
#include "arcflow/net/frame.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace arcflow::net {
namespace {

std::span<const std::byte> Bytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

std::string Header(std::uint32_t n) {
  std::string out;
  for (int shift = 0; shift < 32; shift += 8) out.push_back(static_cast<char>(n >> shift & 0xff));
  return out;
}

TEST(FrameTest, LengthIsLittleEndianBeforeTheBody) {
  const auto frame = EncodeFrame({{"op", "x"}});
  ASSERT_TRUE(frame.ok());
  EXPECT_EQ(*frame, std::string("\x0a\0\0\0{\"op\":\"x\"}", 14));
}

TEST(FrameTest, EverySplitOfAStreamGivesTheSameFrames) {
  std::string stream;
  for (int i = 0; i < 3; ++i) stream += *EncodeFrame({{"op", "n"}, {"i", i}});
  for (std::size_t a = 0; a <= stream.size(); ++a) {
    for (std::size_t b = a; b <= stream.size(); ++b) {
      FrameDecoder sut;
      int seen = 0;
      for (const auto& part : {stream.substr(0, a), stream.substr(a, b - a), stream.substr(b)}) {
        sut.Feed(Bytes(part));
        for (;;) {
          const auto body = sut.Next();
          ASSERT_TRUE(body.ok());
          if (!body->has_value()) break;
          nlohmann::json message;
          ASSERT_TRUE(ParseFrame(**body, &message).ok());
          EXPECT_EQ(message["i"], seen++);
        }
      }
      EXPECT_EQ(seen, 3);
      EXPECT_TRUE(sut.at_boundary());
    }
  }
}

TEST(FrameTest, ManyFramesFedAtOnceAreAllDelivered) {
  std::string stream;
  const std::string text(10'000, 'x');
  for (int i = 0; i < 100; ++i) stream += *EncodeFrame({{"op", "n"}, {"text", text}, {"i", i}});
  FrameDecoder sut;
  sut.Feed(Bytes(stream));
  for (int i = 0; i < 100; ++i) {
    const auto body = sut.Next();
    ASSERT_TRUE(body.ok() && body->has_value());
    EXPECT_EQ(nlohmann::json::parse(**body)["i"], i);
  }
  EXPECT_TRUE(sut.at_boundary());
}

TEST(FrameTest, BoundaryIsKnownInTheMiddleOfAFrame) {
  FrameDecoder sut;
  sut.Feed(Bytes(Header(5) + "abc"));
  EXPECT_FALSE((*sut.Next()).has_value());
  EXPECT_FALSE(sut.at_boundary());
}

TEST(FrameTest, LengthOverTheBoundFailsAndStaysFailed) {
  FrameDecoder sut(100);
  sut.Feed(Bytes(Header(101)));
  EXPECT_EQ(sut.Next().status().code(), Code::kInvalidArgument);
  sut.Feed(Bytes(*EncodeFrame({{"op", "x"}})));
  EXPECT_EQ(sut.Next().status().code(), Code::kInvalidArgument);
}

TEST(FrameTest, LengthOfTheBoundPasses) {
  FrameDecoder sut(100);
  sut.Feed(Bytes(Header(100) + std::string(100, 'x')));
  const auto body = sut.Next();
  ASSERT_TRUE(body.ok());
  EXPECT_EQ((*body)->size(), 100u);
}

TEST(FrameTest, LengthOfZeroFails) {
  FrameDecoder sut;
  sut.Feed(Bytes(Header(0)));
  EXPECT_EQ(sut.Next().status().code(), Code::kInvalidArgument);
}

TEST(FrameTest, MessageOverTheBoundIsNotEncoded) {
  EXPECT_EQ(EncodeFrame({{"op", std::string(kMaxFrameBytes, 'x')}}).status().code(),
            Code::kInvalidArgument);
}

TEST(FrameTest, TextThatIsNotUtf8IsReplacedAndNotThrown) {
  const auto frame = EncodeFrame({{"op", "log"}, {"line", "bad \xff byte"}});
  ASSERT_TRUE(frame.ok());
  EXPECT_NE(frame->find("\xef\xbf\xbd"), std::string::npos);
}

TEST(FrameTest, OnlyObjectsWithAStringOpParse) {
  nlohmann::json message = "untouched";
  for (const char* bad : {"", "[]", "1", "{\"op\":1}", "{}", "{\"op\":\"x\"", "\xff\xfe", "null"}) {
    EXPECT_EQ(ParseFrame(bad, &message).code(), Code::kInvalidArgument) << bad;
  }
  EXPECT_EQ(message, "untouched");
  EXPECT_TRUE(ParseFrame("{\"op\":\"x\"}", &message).ok());
}

TEST(FrameTest, RawFramesComeInOrderWithMessagesWhereTheyAreWanted) {
  FrameDecoder sut(64, 128);
  sut.Feed(Bytes(*EncodeFrame({{"op", "x"}}) + RawFrameHeader(100) + std::string(100, '\xff') +
                 *EncodeFrame({{"op", "y"}})));
  EXPECT_EQ(**sut.Next(), "{\"op\":\"x\"}");
  EXPECT_FALSE(sut.raw());
  EXPECT_EQ(**sut.Next(), std::string(100, '\xff'));
  EXPECT_TRUE(sut.raw());
  EXPECT_EQ(**sut.Next(), "{\"op\":\"y\"}");
  EXPECT_FALSE(sut.raw());
}

TEST(FrameTest, BodiesOfRawFramesPassTheDecoderAfterTheirHead) {
  FrameDecoder sut(64, 128, 4);
  sut.Feed(Bytes(RawFrameHeader(10) + "headabc"));
  EXPECT_EQ(**sut.Next(), "head");
  EXPECT_TRUE(sut.raw());
  EXPECT_EQ(sut.raw_left(), 6u);
  std::string body(6, ' ');
  auto* const to = reinterpret_cast<std::byte*>(body.data());
  EXPECT_EQ(sut.TakeRaw(to), 3u);
  EXPECT_FALSE(sut.Next()->has_value());
  EXPECT_FALSE(sut.at_boundary());
  sut.SkipRaw(2);  // read past the decoder
  sut.Feed(Bytes("f" + *EncodeFrame({{"op", "y"}})));
  EXPECT_EQ(sut.TakeRaw(to + 5), 1u);
  EXPECT_EQ(body, "abc  f");
  EXPECT_EQ(**sut.Next(), "{\"op\":\"y\"}");
  EXPECT_FALSE(sut.raw());
  EXPECT_TRUE(sut.at_boundary());
  sut.Feed(Bytes(RawFrameHeader(3) + "hea"));
  EXPECT_EQ(sut.Next().status().code(), Code::kInvalidArgument);
}

TEST(FrameTest, RawFramesAreRefusedOverTheirBoundAndWhereNobodyWantsThem) {
  FrameDecoder bounded(64, 128);
  bounded.Feed(Bytes(RawFrameHeader(129)));
  EXPECT_EQ(bounded.Next().status().code(), Code::kInvalidArgument);
  FrameDecoder plain(64);
  plain.Feed(Bytes(RawFrameHeader(1) + "x"));
  EXPECT_EQ(plain.Next().status().code(), Code::kInvalidArgument);
}

TEST(FrameTest, DeepNestingIsNoStackOverflow) {
  const std::string deep =
      "{\"op\":\"x\",\"a\":" + std::string(400'000, '[') + std::string(400'000, ']') + "}";
  nlohmann::json message;
  EXPECT_TRUE(ParseFrame(deep, &message).ok());
}

}  // namespace
}  // namespace arcflow::net
