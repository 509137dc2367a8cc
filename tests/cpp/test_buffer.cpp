// Alignment, zeroing, ownership, and memory that cannot be had.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/aligned.h"
#include "base/arena.h"
#include "base/error.h"
#include "check.h"

namespace {

using ryz::Buffer;

void aligned_and_zeroed() {
  for (std::size_t bytes : {std::size_t{1}, std::size_t{63}, std::size_t{64}, std::size_t{4097},
                            (std::size_t{2} << 20) + 1, std::size_t{5} << 20}) {
    for (int again = 0; again < 2; ++again) {  // the second may get back the first one's memory
      const Buffer buffer(bytes, "test");
      RYZ_CHECK(buffer.bytes() == bytes);
      auto* data = buffer.as<unsigned char>();
      RYZ_CHECK(reinterpret_cast<std::uintptr_t>(data) % ryz::kCacheLine == 0);
      for (std::size_t i = 0; i < bytes; ++i) {
        RYZ_CHECK(data[i] == 0);
        data[i] = 0xff;
      }
    }
  }
}

void empty() {
  const Buffer none;
  const Buffer nothing(0, "test");
  RYZ_CHECK(none.as<char>() == nullptr && none.bytes() == 0);
  RYZ_CHECK(nothing.as<char>() == nullptr && nothing.bytes() == 0);
}

void moves() {
  Buffer first(100, "test");
  char* const data = first.as<char>();
  Buffer second(std::move(first));
  RYZ_CHECK(second.as<char>() == data && second.bytes() == 100);
  Buffer third(200, "test");
  third = std::move(second);
  RYZ_CHECK(third.as<char>() == data && third.bytes() == 100);
  third = Buffer();
  RYZ_CHECK(third.as<char>() == nullptr && third.bytes() == 0);
}

void borrowed() {
  alignas(64) static const char data[128] = "borrowed";
  auto owner = std::make_shared<int>(1);
  {
    Buffer buffer(data, 100, owner);
    RYZ_CHECK(buffer.is_borrowed() && buffer.as<char>() == data && buffer.bytes() == 100);
    Buffer moved(std::move(buffer));
    RYZ_CHECK(moved.is_borrowed() && moved.as<char>() == data && !buffer.is_borrowed());
    RYZ_CHECK(owner.use_count() == 2);
    buffer = Buffer(64, "test");
    RYZ_CHECK(!buffer.is_borrowed());
  }
  RYZ_CHECK(owner.use_count() == 1);
  RYZ_CHECK(message_of<ryz::ValidationError>([&] {
              Buffer(data + 8, 64, owner);
            }).find("aligned to 64 bytes") != std::string::npos);
  const Buffer nothing(data + 8, 0, owner);
  RYZ_CHECK(nothing.bytes() == 0);
}

void weights_lie_apart_and_outlive_each_other() {
  std::vector<Buffer> pieces;
  for (int again = 0; again < 3; ++again) {
    for (std::size_t bytes : {std::size_t{1}, std::size_t{100}, std::size_t{7} << 20,
                              std::size_t{15} << 20, std::size_t{20} << 20}) {
      pieces.push_back(ryz::weight_buffer(bytes, "test"));
      RYZ_CHECK(pieces.back().bytes() == bytes);
    }
  }
  const auto holds = [](const Buffer& piece, unsigned char value) {
    const auto* data = piece.as<unsigned char>();
    return reinterpret_cast<std::uintptr_t>(data) % ryz::kCacheLine == 0 &&
           std::all_of(data, data + piece.bytes(), [&](unsigned char c) { return c == value; });
  };
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    RYZ_CHECK(holds(pieces[i], 0));
    std::fill_n(pieces[i].as<unsigned char>(), pieces[i].bytes(),
                static_cast<unsigned char>(i + 1));
  }
  for (std::size_t i = 0; i < pieces.size(); i += 2) pieces[i] = Buffer();
  for (std::size_t i = 1; i < pieces.size(); i += 2) {
    RYZ_CHECK(holds(pieces[i], static_cast<unsigned char>(i + 1)));
  }
}

void adopts_all_or_nothing() {
  alignas(64) static const char data[128] = "stored";
  const auto owner = std::make_shared<int>(1);
  Buffer first(64, "test"), second(100, "test");
  const ryz::NamedBuffers places{{"first", &first}, {"second", &second}};
  const auto stored = [&](std::size_t bytes, const char* name) {
    std::map<std::string, Buffer> buffers;
    buffers.emplace("first", Buffer(data, 64, owner));
    buffers.emplace(name, Buffer(data, bytes, owner));
    return buffers;
  };
  for (const auto& [bytes, name] : {std::pair{std::size_t{99}, "second"}, {100, "third"}}) {
    const std::string message =
        message_of<ryz::ValidationError>([&] { adopt_buffers(places, stored(bytes, name)); });
    RYZ_CHECK(message.find("stored array 'second'") != std::string::npos);
    RYZ_CHECK(!first.is_borrowed() && !second.is_borrowed());
  }
  adopt_buffers(places, stored(100, "second"));
  RYZ_CHECK(first.as<char>() == data && second.as<char>() == data && owner.use_count() == 3);
}

void out_of_memory() {
  const std::size_t bytes = std::size_t{1} << 60;
  const std::string message =
      message_of<ryz::OutOfMemoryError>([&] { const Buffer buffer(bytes, "KV pages"); });
  RYZ_CHECK(message.find("[memory] cannot allocate " + std::to_string(bytes) +
                         " bytes for KV pages") == 0);
}

void rounding() {
  RYZ_CHECK(ryz::round_up(0, 16) == 0);
  RYZ_CHECK(ryz::round_up(1, 16) == 16);
  RYZ_CHECK(ryz::round_up(16, 16) == 16);
  RYZ_CHECK(ryz::round_up(17, 16) == 32);
}

}  // namespace

int main() {
  return run_tests([] {
    aligned_and_zeroed();
    empty();
    moves();
    borrowed();
    weights_lie_apart_and_outlive_each_other();
    adopts_all_or_nothing();
    out_of_memory();
    rounding();
  });
}
