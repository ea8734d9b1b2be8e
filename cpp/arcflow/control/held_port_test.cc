// SPDX-License-Identifier: Apache-2.0
// A held port is nobody else's, and comes out of the range that was asked for.
#include "arcflow/control/held_port.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

namespace arcflow::control {
namespace {

constexpr char kHost[] = "127.0.0.1";

/// Binds as gRPC does: SO_REUSEPORT first.
bool BindsAndListens(std::uint16_t port, bool reuse) {
  const Fd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int one = 1;
  if (reuse) ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  ::inet_pton(AF_INET, kHost, &address.sin_addr);
  return ::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 &&
         ::listen(socket.get(), 1) == 0;
}

TEST(HeldPortTest, OnlyAServerThatSharesPortsGetsIt) {
  const auto sut = HeldPort::Reserve(kHost);
  ASSERT_TRUE(sut.ok()) << sut.status().ToString();
  EXPECT_FALSE(BindsAndListens(sut->port, false));
  EXPECT_TRUE(BindsAndListens(sut->port, true));
}

TEST(HeldPortTest, PortsOfARangeAreHeldByOneAgentEach) {
  std::uint16_t first = 0;
  {
    const auto probe = HeldPort::Reserve(kHost);
    ASSERT_TRUE(probe.ok());
    first = probe->port < 60000 ? probe->port : 50000;  // mostly free from here on
  }
  const auto last = static_cast<std::uint16_t>(first + 200);
  const auto one = HeldPort::Reserve(kHost, first, last);
  const auto two = HeldPort::Reserve(kHost, first, last);
  ASSERT_TRUE(one.ok() && two.ok());
  EXPECT_NE(one->port, two->port);
  for (const auto* held : {&*one, &*two}) {
    EXPECT_GE(held->port, first);
    EXPECT_LE(held->port, last);
  }
}

TEST(HeldPortTest, ARangeThatIsTakenIsNamed) {
  const auto taken = HeldPort::Reserve(kHost);
  ASSERT_TRUE(taken.ok());
  const auto sut = HeldPort::Reserve(kHost, taken->port, taken->port);
  ASSERT_FALSE(sut.ok());
  EXPECT_EQ(sut.status().code(), Code::kResourceExhausted);
  EXPECT_NE(sut.status().ToString().find(std::to_string(taken->port)), std::string::npos);
}

TEST(HeldPortTest, AnAddressOfAnotherMachineIsRefused) {
  const auto sut = HeldPort::Reserve("192.0.2.1");
  ASSERT_FALSE(sut.ok());
  EXPECT_EQ(sut.status().code(), Code::kUnavailable);
}

}  // namespace
}  // namespace arcflow::control
