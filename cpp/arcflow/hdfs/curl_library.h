// SPDX-License-Identifier: Apache-2.0
// CurlLibrary: libcurl, opened at run time, so that the product loads on machines without it.
#pragma once

#include <curl/curl.h>

#include "arcflow/base/status.h"

namespace arcflow::hdfs {

/// The functions of libcurl that we call. Threads: each may be called from any, a handle from one
/// at a time. Lives as long as the process.
struct CurlLibrary {
  CURL* (*easy_init)() = nullptr;
  void (*easy_cleanup)(CURL*) = nullptr;
  void (*easy_reset)(CURL*) = nullptr;
  CURLcode (*easy_perform)(CURL*) = nullptr;
  CURLcode (*easy_setopt)(CURL*, CURLoption, ...) = nullptr;
  CURLcode (*easy_getinfo)(CURL*, CURLINFO, ...) = nullptr;
  const char* (*easy_strerror)(CURLcode) = nullptr;
  curl_slist* (*slist_append)(curl_slist*, const char*) = nullptr;
  void (*slist_free_all)(curl_slist*) = nullptr;
  bool has_negotiate = false;

  /// Opens it at the first call. Errors: Unavailable when there is none, with what to install.
  static Result<const CurlLibrary*> Get();
};

}  // namespace arcflow::hdfs
