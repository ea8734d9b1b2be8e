// SPDX-License-Identifier: Apache-2.0
// Handshake: the two state machines and the only calls into OpenSSL.
#include "arcflow/net/handshake.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <openssl/rand.h>

#include <algorithm>
#include <cstring>

namespace arcflow::net {
namespace {

constexpr std::string_view kMagic("ARCFLOW\x01", 8);  // the last byte is the version

void Append(std::string* out, std::span<const unsigned char> bytes) {
  out->append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

}  // namespace

Result<Handshake> Handshake::Server(std::string secret) { return Make(true, std::move(secret)); }

Result<Handshake> Handshake::Client(std::string secret) { return Make(false, std::move(secret)); }

Result<Handshake> Handshake::Make(bool server, std::string secret) {
  if (secret.size() < kMinSecretBytes) {
    return InvalidArgument("the run secret has " + std::to_string(secret.size()) +
                           " bytes, at least " + std::to_string(kMinSecretBytes) + " are needed");
  }
  Handshake handshake(server, std::move(secret));
  Nonce& own = server ? handshake.server_nonce_ : handshake.client_nonce_;
  if (RAND_bytes(own.data(), static_cast<int>(own.size())) != 1) {
    return Internal("the system has no random bytes");
  }
  if (server) {
    handshake.output_.assign(kMagic);
    Append(&handshake.output_, own);
    handshake.state_ = State::kClientProof;
  }
  return handshake;
}

Handshake::Handshake(Handshake&& o) noexcept { *this = std::move(o); }

Handshake& Handshake::operator=(Handshake&& o) noexcept {
  server_ = o.server_;
  state_ = o.state_;
  server_nonce_ = o.server_nonce_;
  client_nonce_ = o.client_nonce_;
  secret_.swap(o.secret_);  // swapped, not moved: a short string would leave its bytes behind
  input_.swap(o.input_);
  output_.swap(o.output_);
  return *this;
}

Handshake::~Handshake() { OPENSSL_cleanse(secret_.data(), secret_.size()); }

std::string Handshake::TakeOutput() {
  std::string out;
  out.swap(output_);
  return out;
}

std::size_t Handshake::wanted() const {
  switch (state_) {
    case State::kServerHello:
      return kMagic.size() + kNonceBytes - input_.size();
    case State::kClientProof:
      return kNonceBytes + kProofBytes - input_.size();
    case State::kServerProof:
      return kProofBytes - input_.size();
    case State::kDone:
    case State::kFailed:
      break;
  }
  return 0;
}

Result<std::size_t> Handshake::Feed(std::span<const std::byte> bytes) {
  if (state_ == State::kFailed) return Unauthenticated("handshake failed before");
  std::size_t used = 0;
  while (used < bytes.size() && wanted() > 0) {
    const std::size_t n = std::min(wanted(), bytes.size() - used);
    input_.append(reinterpret_cast<const char*>(bytes.data()) + used, n);
    used += n;
    ARC_TRY(CheckMagic());
    if (wanted() > 0) break;
    ARC_TRY(Step());
  }
  return used;
}

// A stranger that speaks another protocol is known from its first bytes; no need to wait for all of
// them.
Status Handshake::CheckMagic() {
  if (state_ != State::kServerHello) return Status::Ok();
  const std::size_t n = std::min(input_.size(), kMagic.size());
  if (std::memcmp(input_.data(), kMagic.data(), n) == 0) return Status::Ok();
  return Fail("the peer does not speak this version of the Arcflow protocol");
}

Status Handshake::Step() {
  std::string input;
  input.swap(input_);
  switch (state_) {
    case State::kServerHello:
      return OnServerHello(input);
    case State::kClientProof:
      return OnClientProof(input);
    case State::kServerProof:
      return OnServerProof(input);
    case State::kDone:
    case State::kFailed:
      break;
  }
  return Internal("handshake has no step to make");
}

Status Handshake::OnServerHello(const std::string& input) {
  std::memcpy(server_nonce_.data(), input.data() + kMagic.size(), kNonceBytes);
  auto proof = MakeProof("client");
  if (!proof.ok()) return proof.status();
  Append(&output_, client_nonce_);
  Append(&output_, *proof);
  state_ = State::kServerProof;
  return Status::Ok();
}

Status Handshake::OnClientProof(const std::string& input) {
  std::memcpy(client_nonce_.data(), input.data(), kNonceBytes);
  auto expected = MakeProof("client");
  if (!expected.ok()) return expected.status();
  if (CRYPTO_memcmp(expected->data(), input.data() + kNonceBytes, kProofBytes) != 0) {
    return Fail("the peer does not know the run's secret");
  }
  auto proof = MakeProof("server");
  if (!proof.ok()) return proof.status();
  Append(&output_, *proof);
  state_ = State::kDone;
  return Status::Ok();
}

Status Handshake::OnServerProof(const std::string& input) {
  auto expected = MakeProof("server");
  if (!expected.ok()) return expected.status();
  if (CRYPTO_memcmp(expected->data(), input.data(), kProofBytes) != 0) {
    return Fail("the peer does not know the run's secret");
  }
  state_ = State::kDone;
  return Status::Ok();
}

Result<Handshake::Proof> Handshake::MakeProof(std::string_view label) const {
  std::string text(label);
  text.append(kMagic);
  Append(&text, server_nonce_);
  Append(&text, client_nonce_);
  Proof proof{};
  unsigned int length = 0;
  const auto* ok =
      HMAC(EVP_sha256(), secret_.data(), static_cast<int>(secret_.size()),
           reinterpret_cast<const unsigned char*>(text.data()), text.size(), proof.data(), &length);
  if (ok == nullptr || length != proof.size()) return Internal("HMAC-SHA256 is not available");
  return proof;
}

Result<std::string> Handshake::DeriveKey(std::string_view label) const {
  if (!done()) return FailedPrecondition("the handshake has not ended");
  std::string salt;
  Append(&salt, server_nonce_);
  Append(&salt, client_nonce_);
  std::string key(kProofBytes, '\0');
  std::string secret = secret_;  // the parameters want to write where they never do
  std::string info(label);
  char digest[] = "SHA256";
  const OSSL_PARAM parameters[] = {
      OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0),
      OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, secret.data(), secret.size()),
      OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT, salt.data(), salt.size()),
      OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, info.data(), info.size()),
      OSSL_PARAM_construct_end()};
  EVP_KDF* kdf = EVP_KDF_fetch(nullptr, "HKDF", nullptr);
  EVP_KDF_CTX* context = kdf == nullptr ? nullptr : EVP_KDF_CTX_new(kdf);
  const bool ok =
      context != nullptr && EVP_KDF_derive(context, reinterpret_cast<unsigned char*>(key.data()),
                                           key.size(), parameters) == 1;
  EVP_KDF_CTX_free(context);
  EVP_KDF_free(kdf);
  OPENSSL_cleanse(secret.data(), secret.size());
  if (!ok) return Internal("HKDF-SHA256 is not available");
  return key;
}

void Handshake::ForgetThread() { OPENSSL_thread_stop(); }

Status Handshake::Fail(const char* why) {
  state_ = State::kFailed;
  output_.clear();
  return Unauthenticated(why);
}

}  // namespace arcflow::net
