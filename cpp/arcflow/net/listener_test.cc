// SPDX-License-Identifier: Apache-2.0
// Listener: strangers cost little and not for long, honest peers get through, children inherit
// nothing.
#include "arcflow/net/listener.h"

#include <fcntl.h>

#include <filesystem>

#include "arcflow/net/channel_testing.h"

namespace arcflow::net {
namespace {

class ListenerTest : public ChannelTest {};

TEST_F(ListenerTest, FramesBeforeTheProofAreNeverParsed) {
  const Fd stranger = Stranger();
  const std::string frame = *EncodeFrame({{"op", "join"}, {"pad", std::string(200, 'x')}});
  ASSERT_GT(::send(stranger.get(), frame.data(), frame.size(), MSG_NOSIGNAL), 0);
  EXPECT_LE(ReadToEnd(stranger).size(), 40u);  // the server's hello at most
  EXPECT_EQ(accepted_count(), 0u);
  EXPECT_TRUE(server.messages().empty());
  EXPECT_TRUE(WaitRejected(1));
}

TEST_F(ListenerTest, StrangerWhoSaysNothingIsDropped) {
  ListenerOptions options{"127.0.0.1", 0, Options(), 64};
  options.channel.handshake_timeout = milliseconds(100);
  Listen(options);
  const Fd stranger = Stranger();
  EXPECT_EQ(ReadToEnd(stranger).size(), 40u);
  EXPECT_TRUE(WaitRejected(1));
}

TEST_F(ListenerTest, SilentStrangersDoNotKeepHonestPeersOut) {
  Listen({"127.0.0.1", 0, Options(), 4});
  std::vector<Fd> strangers;
  for (int i = 0; i < 40; ++i) strangers.push_back(Stranger());
  auto sut = Connect();
  EXPECT_TRUE(client.WaitReady());
  EXPECT_TRUE(WaitRejected(36));
  EXPECT_NE(WaitAccepted(), nullptr);
}

TEST_F(ListenerTest, SocketsAreNotInheritedByChildren) {
  auto sut = Connect();
  ASSERT_NE(WaitAccepted(), nullptr);
  ASSERT_TRUE(client.WaitReady());
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code ignored;
    const auto to = std::filesystem::read_symlink(entry.path(), ignored).string();
    if (to.rfind("socket:", 0) != 0 && to.rfind("anon_inode:", 0) != 0) continue;
    const int fd = std::stoi(entry.path().filename());
    const int flags = ::fcntl(fd, F_GETFD);
    if (flags >= 0) {
      EXPECT_TRUE(flags & FD_CLOEXEC) << to;
    }
  }
}

TEST_F(ListenerTest, PortInUseAndBadAddressAreSaidSo) {
  const auto in_use = Listener::Bind(*loop, {"127.0.0.1", listener->port(), Options(), 64}, {});
  EXPECT_EQ(in_use.status().code(), Code::kAlreadyExists);
  const auto no_host = Listener::Bind(*loop, {"", 0, Options(), 64}, {});
  EXPECT_EQ(no_host.status().code(), Code::kInvalidArgument);
  const auto no_secret = Listener::Bind(*loop, {"127.0.0.1", 0, Options("x"), 64}, {});
  EXPECT_EQ(no_secret.status().code(), Code::kInvalidArgument);
}

TEST_F(ListenerTest, BindsToItsAddressOnly) { EXPECT_EQ(listener->host(), "127.0.0.1"); }

TEST_F(ListenerTest, ClosedListenerDropsStrangersAndKeepsChannels) {
  auto sut = Connect();
  auto other = WaitAccepted();
  ASSERT_TRUE(client.WaitReady());
  const Fd stranger = Stranger();
  char hello[40];
  ASSERT_EQ(::recv(stranger.get(), hello, sizeof(hello), MSG_WAITALL), 40);
  listener->Close();
  EXPECT_EQ(ReadToEnd(stranger), "");
  ASSERT_TRUE(sut->Send({{"op", "still"}}).ok());
  EXPECT_TRUE(server.WaitMessages(1));
}

}  // namespace
}  // namespace arcflow::net
