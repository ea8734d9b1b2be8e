// SPDX-License-Identifier: Apache-2.0
// Handshake: both ends of a connection prove that they know the run's secret before anything else
// is parsed.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "arcflow/base/status.h"

namespace arcflow::net {

/// One side of the mutual challenge-response, sans-IO: the owner moves the bytes.
/// docs/formats/frame.md has the layout.
///   server → client  magic (8), server nonce (32)
///   client → server  client nonce (32), HMAC-SHA256(secret, "client" ‖ magic ‖ both nonces)
///   server → client  HMAC-SHA256(secret, "server" ‖ magic ‖ both nonces)
/// Nonces are fresh for every connection, so a recorded exchange proves nothing later; the labels
/// keep a proof from being reflected. It authenticates the ends, it does not encrypt: what follows
/// can be read and changed by whoever owns the wire. Threads: one at a time. Never blocks.
class Handshake {
 public:
  static constexpr std::size_t kNonceBytes = 32;
  static constexpr std::size_t kProofBytes = 32;
  static constexpr std::size_t kMinSecretBytes = 16;

  /// InvalidArgument for a secret under kMinSecretBytes; Internal when the system has no random
  /// bytes.
  static Result<Handshake> Server(std::string secret);
  static Result<Handshake> Client(std::string secret);
  Handshake(Handshake&& o) noexcept;
  Handshake& operator=(Handshake&& o) noexcept;
  ~Handshake();  // wipes the secret

  /// Bytes to send to the peer now; empty when it is the peer's turn. Sending them is the caller's
  /// job, in order.
  std::string TakeOutput();
  /// Takes bytes of the peer and returns how many it used: none past the end of the handshake, so
  /// frames that follow stay untouched. Unauthenticated as soon as the peer is known to be wrong;
  /// the handshake then stays failed and has nothing to send.
  Result<std::size_t> Feed(std::span<const std::byte> bytes);
  /// Bytes of the peer still needed in this step; 0 when done or failed.
  std::size_t wanted() const;
  /// Both proofs were right (client), or the client's was (server; its own is then in
  /// TakeOutput()).
  bool done() const { return state_ == State::kDone; }
  /// A key that only the two ends of this handshake know, for `label`; another one for each
  /// connection. HKDF-SHA256 (RFC 5869) of the secret, with both nonces as salt. Call when done().
  Result<std::string> DeriveKey(std::string_view label) const;
  /// Client: the server has been told who we are (TakeOutput included) and is to answer.
  bool proof_sent() const { return state_ == State::kServerProof; }

  /// Frees what the cryptographic library keeps for the calling thread. For threads that nobody
  /// joins: they may still be ending when the process does, and then leave it behind.
  static void ForgetThread();

 private:
  enum class State { kServerHello, kClientProof, kServerProof, kDone, kFailed };
  using Nonce = std::array<unsigned char, kNonceBytes>;
  using Proof = std::array<unsigned char, kProofBytes>;

  Handshake(bool server, std::string secret) : server_(server), secret_(std::move(secret)) {}
  static Result<Handshake> Make(bool server, std::string secret);
  Status Step();  // input_ is complete
  Status CheckMagic();
  Status OnServerHello(const std::string& input);
  Status OnClientProof(const std::string& input);
  Status OnServerProof(const std::string& input);
  Result<Proof> MakeProof(std::string_view label) const;
  Status Fail(const char* why);

  bool server_ = false;
  std::string secret_;
  State state_ = State::kServerHello;
  Nonce server_nonce_{};
  Nonce client_nonce_{};
  std::string input_;
  std::string output_;
};

}  // namespace arcflow::net
