// SPDX-License-Identifier: Apache-2.0
// Handshake: who knows the secret gets through, nobody else, whatever the pieces bytes come in.
#include "arcflow/net/handshake.h"

#include <gtest/gtest.h>

#include <vector>

namespace arcflow::net {
namespace {

const std::string kSecret(32, 's');

std::span<const std::byte> Bytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

Handshake Server(const std::string& secret = kSecret) {
  return std::move(*Handshake::Server(secret));
}
Handshake Client(const std::string& secret = kSecret) {
  return std::move(*Handshake::Client(secret));
}

/// Feeds all of `bytes` in pieces of `step`; the first error, or OK.
Status FeedAll(Handshake* sut, const std::string& bytes, std::size_t step) {
  for (std::size_t at = 0; at < bytes.size(); at += step) {
    const auto used = sut->Feed(Bytes(bytes).subspan(at, std::min(step, bytes.size() - at)));
    if (!used.ok()) return used.status();
  }
  return Status::Ok();
}

class HandshakeSplitTest : public ::testing::TestWithParam<std::size_t> {};

TEST_P(HandshakeSplitTest, BothSidesFinishWithTheSameSecret) {
  Handshake server = Server();
  Handshake client = Client();
  const std::string hello = server.TakeOutput();
  EXPECT_EQ(hello.size(), 40u);
  ASSERT_TRUE(FeedAll(&client, hello, GetParam()).ok());
  const std::string proof = client.TakeOutput();
  EXPECT_EQ(proof.size(), 64u);
  EXPECT_FALSE(client.done());
  ASSERT_TRUE(FeedAll(&server, proof, GetParam()).ok());
  EXPECT_TRUE(server.done());
  const std::string answer = server.TakeOutput();
  EXPECT_EQ(answer.size(), 32u);
  ASSERT_TRUE(FeedAll(&client, answer, GetParam()).ok());
  EXPECT_TRUE(client.done());
  EXPECT_EQ(client.wanted(), 0u);
}
INSTANTIATE_TEST_SUITE_P(Pieces, HandshakeSplitTest, ::testing::Values(1, 2, 7, 33, 64));

TEST(HandshakeTest, BytesAfterTheHandshakeAreNotTaken) {
  Handshake server = Server();
  Handshake client = Client();
  ASSERT_TRUE(client.Feed(Bytes(server.TakeOutput())).ok());
  const auto used = server.Feed(Bytes(client.TakeOutput() + "frame"));
  ASSERT_TRUE(used.ok());
  EXPECT_EQ(*used, 64u);
}

TEST(HandshakeTest, ServerRefusesAClientWithAnotherSecret) {
  Handshake server = Server();
  Handshake client = Client(std::string(32, 'x'));
  ASSERT_TRUE(client.Feed(Bytes(server.TakeOutput())).ok());
  EXPECT_EQ(server.Feed(Bytes(client.TakeOutput())).status().code(), Code::kUnauthenticated);
  EXPECT_FALSE(server.done());
  EXPECT_EQ(server.TakeOutput(), "");
  EXPECT_EQ(server.wanted(), 0u);
}

TEST(HandshakeTest, ClientRefusesAServerThatDoesNotKnowTheSecret) {
  Handshake server = Server();
  Handshake client = Client();
  ASSERT_TRUE(client.Feed(Bytes(server.TakeOutput())).ok());
  client.TakeOutput();
  EXPECT_EQ(client.Feed(Bytes(std::string(32, '\0'))).status().code(), Code::kUnauthenticated);
  EXPECT_FALSE(client.done());
}

TEST(HandshakeTest, RecordedProofIsWorthlessOnANewConnection) {
  Handshake first = Server();
  Handshake client = Client();
  ASSERT_TRUE(client.Feed(Bytes(first.TakeOutput())).ok());
  const std::string recorded = client.TakeOutput();
  ASSERT_TRUE(first.Feed(Bytes(recorded)).ok());
  ASSERT_TRUE(first.done());

  Handshake second = Server();
  second.TakeOutput();
  EXPECT_EQ(second.Feed(Bytes(recorded)).status().code(), Code::kUnauthenticated);
}

TEST(HandshakeTest, RecordedServerIsWorthlessForANewClient) {
  Handshake server = Server();
  Handshake first = Client();
  const std::string hello = server.TakeOutput();
  ASSERT_TRUE(first.Feed(Bytes(hello)).ok());
  ASSERT_TRUE(server.Feed(Bytes(first.TakeOutput())).ok());
  const std::string answer = server.TakeOutput();

  Handshake second = Client();
  ASSERT_TRUE(second.Feed(Bytes(hello)).ok());
  EXPECT_EQ(second.Feed(Bytes(answer)).status().code(), Code::kUnauthenticated);
}

TEST(HandshakeTest, ProofSentBackIsRefused) {
  Handshake server = Server();
  Handshake client = Client();
  ASSERT_TRUE(client.Feed(Bytes(server.TakeOutput())).ok());
  const std::string own = client.TakeOutput();
  EXPECT_EQ(client.Feed(Bytes(own.substr(32))).status().code(), Code::kUnauthenticated);
}

TEST(HandshakeTest, EveryFlippedBitIsRefused) {
  for (std::size_t bit = 0; bit < 64 * 8; bit += 5) {
    Handshake server = Server();
    Handshake client = Client();
    ASSERT_TRUE(client.Feed(Bytes(server.TakeOutput())).ok());
    std::string proof = client.TakeOutput();
    proof[bit / 8] = static_cast<char>(proof[bit / 8] ^ (1 << bit % 8));
    EXPECT_EQ(server.Feed(Bytes(proof)).status().code(), Code::kUnauthenticated) << bit;
  }
}

TEST(HandshakeTest, AnotherProtocolIsKnownFromItsFirstByte) {
  Handshake client = Client();
  EXPECT_EQ(client.Feed(Bytes("SSH-2.0")).status().code(), Code::kUnauthenticated);
  EXPECT_EQ(client.Feed(Bytes("ARCFLOW")).status().code(), Code::kUnauthenticated);
}

TEST(HandshakeTest, AnotherVersionIsRefused) {
  Handshake client = Client();
  EXPECT_EQ(client.Feed(Bytes("ARCFLOW\x02")).status().code(), Code::kUnauthenticated);
}

TEST(HandshakeTest, NoncesAreFresh) { EXPECT_NE(Server().TakeOutput(), Server().TakeOutput()); }

TEST(HandshakeTest, ShortSecretIsRefusedBeforeAnyByte) {
  EXPECT_EQ(Handshake::Server("short").status().code(), Code::kInvalidArgument);
  EXPECT_EQ(Handshake::Client("").status().code(), Code::kInvalidArgument);
}

}  // namespace
}  // namespace arcflow::net
