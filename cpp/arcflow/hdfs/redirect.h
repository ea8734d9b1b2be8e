// SPDX-License-Identifier: Apache-2.0
// Redirects: where a NameNode may send us.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "arcflow/base/status.h"
#include "arcflow/hdfs/uri.h"

namespace arcflow::hdfs {

/// Checks the Location of a NameNode's answer to a request for `from`.
/// Accepted is an address for the same operation on the same file, never http after https, on a
/// host that is the server itself, is named by `allowed`, or is plainly of the same network: the
/// parent domain of the server, a one-label name when the server has one, an address literal when
/// the server is one, loopback when the server is loopback.
/// `allowed` holds hosts ("10.1.2.3", "dn1.example.org") and domains (".example.org"); "*" is all.
/// Errors: PermissionDenied with the host and the setting that would allow it.
Result<HttpUrl> CheckRedirect(const HttpUrl& from, std::string_view location,
                              const std::vector<std::string>& allowed);

/// Whether CheckRedirect would let `from` send us to `host`.
bool MaySendTo(const HttpUrl& from, std::string_view host, const std::vector<std::string>& allowed);

}  // namespace arcflow::hdfs
