// SPDX-License-Identifier: Apache-2.0
// Two ends with one key, with two keys, and with somebody between them.
#include "arcflow/net/tls_session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace arcflow::net {
namespace {

std::span<const std::byte> Bytes(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

struct Pair {
  TlsSession client;
  TlsSession server;
  std::string wire;   // everything that crossed it
  Status status;      // the first error
  std::string plain;  // what came out at either side meanwhile

  Pair(const std::string& client_key, const std::string& server_key)
      : client(TlsSession::Client(client_key).value()),
        server(TlsSession::Server(server_key).value()) {
    for (int i = 0; i < 4 && status.ok(); ++i) {
      Move(client, server);
      if (status.ok()) Move(server, client);
    }
  }
  void Move(TlsSession& from, TlsSession& to) {
    const std::string bytes = from.TakeOutput();
    wire += bytes;
    status = to.Feed(Bytes(bytes), &plain);
  }
};

const std::string kKey(32, 'k');

TEST(TlsSessionTest, OneKeyOpensBothWays) {
  Pair pair(kKey, kKey);
  ASSERT_TRUE(pair.status.ok()) << pair.status.ToString();
  ASSERT_TRUE(pair.client.done() && pair.server.done());
  const std::string large(3'000'000, 'x');
  for (const std::string& text : {std::string("secret words"), large}) {
    const std::string sealed = pair.client.Encrypt(text).value();
    EXPECT_EQ(sealed.find("secret words"), std::string::npos);
    std::string plain;
    for (std::size_t at = 0; at < sealed.size(); at += 70'001) {
      ASSERT_TRUE(pair.server.Feed(Bytes(sealed.substr(at, 70'001)), &plain).ok());
    }
    EXPECT_EQ(plain, text);
    std::string back;
    ASSERT_TRUE(pair.client.Feed(Bytes(pair.server.Encrypt(text).value()), &back).ok());
    EXPECT_EQ(back, text);
  }
  EXPECT_EQ(pair.wire.find(kKey), std::string::npos);
}

TEST(TlsSessionTest, AnotherKeyIsRefused) {
  Pair pair(std::string(32, 'w'), kKey);
  EXPECT_EQ(pair.status.code(), Code::kUnauthenticated);
  EXPECT_FALSE(pair.server.done());
  EXPECT_EQ(pair.plain, "");
}

TEST(TlsSessionTest, AChangedByteIsFound) {
  Pair pair(kKey, kKey);
  std::string sealed = pair.client.Encrypt("words").value();
  sealed[sealed.size() - 3] = static_cast<char>(sealed[sealed.size() - 3] ^ 1);
  std::string plain;
  EXPECT_EQ(pair.server.Feed(Bytes(sealed), &plain).code(), Code::kDataLoss);
  EXPECT_EQ(plain, "");
  EXPECT_FALSE(pair.server.Feed(Bytes(sealed), &plain).ok());
}

TEST(TlsSessionTest, ARepeatedRecordIsFound) {
  Pair pair(kKey, kKey);
  const std::string sealed = pair.client.Encrypt("once").value();
  std::string plain;
  ASSERT_TRUE(pair.server.Feed(Bytes(sealed), &plain).ok());
  EXPECT_FALSE(pair.server.Feed(Bytes(sealed), &plain).ok());
  EXPECT_EQ(plain, "once");
}

TEST(TlsSessionTest, GarbageIsRefused) {
  auto server = TlsSession::Server(kKey).value();
  std::string plain;
  EXPECT_EQ(server.Feed(Bytes("GET / HTTP/1.1\r\n\r\n"), &plain).code(), Code::kUnauthenticated);
  EXPECT_FALSE(TlsSession::Server("short").ok());
  EXPECT_FALSE(server.Encrypt("early").ok());
}

}  // namespace
}  // namespace arcflow::net
