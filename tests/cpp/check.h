// A test is a program that returns 0; a failed check throws.
#pragma once

#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>

#define RYZ_CHECK(condition)                                                                 \
  do {                                                                                       \
    if (!(condition)) {                                                                      \
      throw std::logic_error(std::string(__FILE__) + ":" + std::to_string(__LINE__) + ": " + \
                             #condition);                                                    \
    }                                                                                        \
  } while (false)

// Runs `body` and returns what its exception of type E says; fails without one.
template <typename E, typename Body>
std::string message_of(Body body) {
  try {
    body();
  } catch (const E& error) {
    return error.what();
  }
  throw std::logic_error("expected an exception");
}

template <typename Body>
int run_tests(Body body) {
  try {
    body();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
