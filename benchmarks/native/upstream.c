// An LLM upstream for benchmarks: OpenAI chat streams whose every token carries the CLOCK_MONOTONIC nanosecond at which
// it was made, as T<ns>; in its content. One thread, epoll, loopback only; it has to be cheaper than any proxy before it.
//
// usage: upstream TOKENS INTERVAL_US FIRST_TOKEN_US
// Prints "port N" once it listens. INTERVAL_US 0 sends a whole answer as fast as the socket takes it, a write a token.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_BYTES = 8192, OUT_BYTES = 4096, EVENTS = 512 };

#define ENVELOPE "data: {\"id\":\"chatcmpl-bench0123456789\",\"object\":\"chat.completion.chunk\",\"created\":1763800000,\"model\":\"bench\","
#define FINGERPRINT "\"system_fingerprint\":\"fp_44709d6fcb\","

typedef struct stream {
  int fd;
  struct stream *earlier, *later;  // in the schedule, while queued
  bool queued, answering, blocked;
  uint64_t due_ns;
  int sent;
  size_t body_left, head_len, out_len, out_at;
  char head[HEAD_BYTES + 1], out[OUT_BYTES];
} stream;

static int tokens, poller;
static uint64_t interval_ns, first_token_ns;
static stream *soonest, *latest;

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

// The schedule is a list sorted by due time. Intervals are all alike, so a stream nearly always belongs at its end.
static void enqueue(stream *s) {
  stream *before = latest;
  while (before && before->due_ns > s->due_ns) before = before->earlier;
  s->earlier = before;
  s->later = before ? before->later : soonest;
  *(s->later ? &s->later->earlier : &latest) = s;
  *(before ? &before->later : &soonest) = s;
  s->queued = true;
}

static void dequeue(stream *s) {
  if (!s->queued) return;
  *(s->earlier ? &s->earlier->later : &soonest) = s->later;
  *(s->later ? &s->later->earlier : &latest) = s->earlier;
  s->queued = false;
}

static void drop(stream *s) {
  dequeue(s);
  close(s->fd);
  free(s);
}

static void watch(stream *s, bool for_room) {
  struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP | (for_room ? EPOLLOUT : 0), .data.ptr = s};
  epoll_ctl(poller, EPOLL_CTL_MOD, s->fd, &e);
  s->blocked = for_room;
}

// 1: all sent; 0: the peer is slow, and the stream goes on when there is room; -1: the peer is gone.
static int flush(stream *s) {
  while (s->out_at < s->out_len) {
    ssize_t n = send(s->fd, s->out + s->out_at, s->out_len - s->out_at, MSG_NOSIGNAL);
    if (n < 0) {
      if (errno != EAGAIN) return -1;
      if (!s->blocked) watch(s, true);
      return 0;
    }
    s->out_at += (size_t)n;
  }
  s->out_at = s->out_len = 0;
  if (s->blocked) watch(s, false);
  return 1;
}

static void put_chunk(stream *s, const char *text, int length) {
  s->out_len += (size_t)sprintf(s->out + s->out_len, "%x\r\n%.*s\r\n", length, length, text);
}

static void put_start(stream *s) {
  static const char head[] =
      "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";
  static const char role[] = ENVELOPE FINGERPRINT
      "\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n";
  memcpy(s->out, head, sizeof head - 1);
  s->out_len = sizeof head - 1;
  put_chunk(s, role, sizeof role - 1);
}

static void put_token(stream *s) {
  char text[512];
  int n = sprintf(text, ENVELOPE FINGERPRINT
                  "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"T%llu;\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n",
                  (unsigned long long)now_ns());
  put_chunk(s, text, n);
}

static void put_end(stream *s) {
  char text[1024];
  int n = sprintf(text,
                  ENVELOPE "\"choices\":[{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n\n" ENVELOPE
                           "\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":%d,\"total_tokens\":%d}}\n\n"
                           "data: [DONE]\n\n",
                  tokens, tokens + 7);
  put_chunk(s, text, n);
  memcpy(s->out + s->out_len, "0\r\n\r\n", 5);
  s->out_len += 5;
}

// Sends everything that is due. false: the peer is gone.
static bool advance(stream *s) {
  for (uint64_t t = now_ns(); s->answering && s->due_ns <= t; t = now_ns()) {
    if (s->sent == 0) put_start(s);
    if (s->sent < tokens) {
      put_token(s);
      s->sent++;
      s->due_ns += interval_ns;
    } else {
      put_end(s);
      s->answering = false;
    }
    int flushed = flush(s);
    if (flushed <= 0) return flushed == 0;
  }
  if (s->answering) enqueue(s);
  return true;
}

static bool answer_get(stream *s) {
  static const char models[] = "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\"created\":1}]}";
  s->out_len = (size_t)sprintf(s->out, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                               sizeof models - 1, models);
  return flush(s) >= 0;
}

static bool answer_post(stream *s) {
  s->answering = true;
  s->sent = 0;
  s->due_ns = now_ns() + first_token_ns;
  if (first_token_ns) {
    enqueue(s);
    return true;
  }
  return advance(s);
}

// Takes bytes of a request: its head whole, then as many body bytes as it names. Requests are not pipelined.
static bool take(stream *s, const char *data, size_t n) {
  if (s->answering) return true;
  if (s->body_left) {
    s->body_left -= n < s->body_left ? n : s->body_left;
    return s->body_left ? true : answer_post(s);
  }
  if (s->head_len + n > HEAD_BYTES) return false;
  memcpy(s->head + s->head_len, data, n);
  s->head_len += n;
  s->head[s->head_len] = 0;
  char *end = strstr(s->head, "\r\n\r\n");
  if (!end) return true;
  size_t body_here = s->head_len - (size_t)(end + 4 - s->head);
  *end = 0;
  s->head_len = 0;
  if (!strncmp(s->head, "GET", 3)) return answer_get(s);
  char *length = strcasestr(s->head, "\r\ncontent-length:");
  if (!length) return false;
  size_t body = strtoul(length + strlen("\r\ncontent-length:"), NULL, 10);
  if (body_here >= body) return answer_post(s);
  s->body_left = body - body_here;
  return true;
}

static void accept_all(int listener) {
  int fd, one = 1;
  while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    stream *s = calloc(1, sizeof *s);
    if (!s) exit(1);
    s->fd = fd;
    struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = s};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
  }
}

static void on_event(stream *s, uint32_t events) {
  static char data[1 << 16];
  bool lives = true;
  if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
    ssize_t n = recv(s->fd, data, sizeof data, 0);
    if (n > 0)
      lives = take(s, data, (size_t)n);
    else
      lives = n < 0 && errno == EAGAIN;
  }
  if (lives && s->blocked && (events & EPOLLOUT)) {
    int flushed = flush(s);
    lives = flushed >= 0 && (flushed == 0 || advance(s));
  }
  if (!lives) drop(s);
}

static int listen_anywhere(void) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof at;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (bind(fd, (void *)&at, sizeof at) || listen(fd, 65535) || getsockname(fd, (void *)&at, &size)) {
    perror("upstream");
    exit(1);
  }
  printf("port %d\n", ntohs(at.sin_port));
  fflush(stdout);
  return fd;
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  tokens = atoi(argv[1]);
  interval_ns = strtoull(argv[2], NULL, 10) * 1000;
  first_token_ns = strtoull(argv[3], NULL, 10) * 1000;
  poller = epoll_create1(0);
  int listener = listen_anywhere(), timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  struct epoll_event on_listener = {.events = EPOLLIN, .data.ptr = &listener};
  struct epoll_event on_timer = {.events = EPOLLIN | EPOLLET, .data.ptr = &timer};
  epoll_ctl(poller, EPOLL_CTL_ADD, listener, &on_listener);
  epoll_ctl(poller, EPOLL_CTL_ADD, timer, &on_timer);
  for (uint64_t armed_ns = 0;;) {
    if (soonest && soonest->due_ns != armed_ns) {
      armed_ns = soonest->due_ns;
      struct itimerspec at = {.it_value = {(time_t)(armed_ns / 1000000000u), (long)(armed_ns % 1000000000u)}};
      timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
    }
    struct epoll_event events[EVENTS];
    int n = epoll_wait(poller, events, EVENTS, -1);
    for (int i = 0; i < n; i++) {
      if (events[i].data.ptr == &listener)
        accept_all(listener);
      else if (events[i].data.ptr != &timer)
        on_event(events[i].data.ptr, events[i].events);
    }
    for (uint64_t t = now_ns(); soonest && soonest->due_ns <= t;) {
      stream *s = soonest;
      dequeue(s);
      if (!advance(s)) drop(s);
    }
  }
}
