// A closed-loop client for benchmarks: every connection asks, reads the stream to its end, and asks again.
// Tokens carry T<ns>; (see upstream.c): the time from there to here is what the path between costs.
//
// usage: load PORT CONNECTIONS SECONDS STAGGER_MS STREAMS [HEADER ...]     prints one line of JSON
// First requests are spread over STAGGER_MS. It ends after SECONDS, or after STREAMS whole streams unless that is 0.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_BYTES = 4096, EVENTS = 512, STAMP_DIGITS = 20, OCTAVES = 40, STEPS = 1024, STEP_BITS = 10 };

// Where the reader is in an answer: chunked coding, or a body that only the end of the connection ends.
typedef enum { IN_HEAD, IN_SIZE, IN_CHUNK, AFTER_CHUNK, IN_TRAILER, UNTIL_CLOSE } place;

typedef struct {
  int fd, head_len, stamp_len;
  place at;
  bool asked, has_token, closes, in_extension, line_is_empty;
  size_t chunk_left;
  uint64_t asked_ns;
  char head[HEAD_BYTES], stamp[STAMP_DIGITS + 1];
} client;

// A histogram of nanoseconds with 1024 steps to each doubling: one thousandth of the value is its error.
typedef struct { uint64_t count, steps[OCTAVES * STEPS]; } histogram;

static histogram token_delay, first_token;
static long finished, failed, tokens;
static int poller;
static struct sockaddr_in proxy;
static char request[8192];
static size_t request_len;

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void count(histogram *h, uint64_t ns) {
  size_t step = ns;
  if (ns >= STEPS) {
    int shift = 63 - __builtin_clzll(ns) - STEP_BITS;
    step = ((size_t)(shift + 1) << STEP_BITS) + (size_t)((ns >> shift) & (STEPS - 1));
  }
  if (step >= OCTAVES * STEPS) step = OCTAVES * STEPS - 1;
  h->steps[step]++;
  h->count++;
}

static double quantile_us(const histogram *h, double q) {
  uint64_t seen = 0, wanted = (uint64_t)(q * (double)h->count);
  for (size_t step = 0; step < OCTAVES * STEPS; step++) {
    seen += h->steps[step];
    if (seen <= wanted) continue;
    if (step < STEPS) return (double)step / 1000;
    return (double)((STEPS + (step & (STEPS - 1))) << ((step >> STEP_BITS) - 1)) / 1000;
  }
  return 0;
}

static void hang_up(client *c) {
  if (c->fd >= 0) close(c->fd);
  c->fd = -1;
}

static void connect_to_proxy(client *c) {
  int one = 1;
  c->fd = socket(AF_INET, SOCK_STREAM, 0);
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (connect(c->fd, (void *)&proxy, sizeof proxy)) {
    perror("load: cannot connect");
    exit(1);
  }
  fcntl(c->fd, F_SETFL, O_NONBLOCK);
  struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
  epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e);
}

static void ask(client *c) {
  if (c->fd < 0) connect_to_proxy(c);
  c->at = IN_HEAD;
  c->head_len = 0;
  c->stamp_len = -1;
  c->has_token = false;
  c->asked = true;
  c->asked_ns = now_ns();
  if (send(c->fd, request, request_len, MSG_NOSIGNAL) != (ssize_t)request_len) failed++;
}

static void give_up(client *c) {
  failed++;
  hang_up(c);
  usleep(1000);  // a proxy that refuses everything is not asked a million times
  ask(c);
}

static void stream_over(client *c) {
  finished++;
  if (c->closes) hang_up(c);
  ask(c);
}

// Finds T<ns>; in the text, wherever reads and chunks cut it.
static void find_tokens(client *c, const char *p, const char *end, uint64_t read_ns) {
  for (; p < end; p++) {
    if (c->stamp_len >= 0) {
      if (*p >= '0' && *p <= '9' && c->stamp_len < STAMP_DIGITS) {
        c->stamp[c->stamp_len++] = *p;
        continue;
      }
      if (*p == ';' && c->stamp_len > 8) {
        c->stamp[c->stamp_len] = 0;
        uint64_t made_ns = strtoull(c->stamp, NULL, 10);
        tokens++;
        if (read_ns > made_ns) count(&token_delay, read_ns - made_ns);
        if (!c->has_token) count(&first_token, read_ns - c->asked_ns);
        c->has_token = true;
      }
      c->stamp_len = -1;
    }
    p = memchr(p, 'T', (size_t)(end - p));
    if (!p) return;
    c->stamp_len = 0;
  }
}

// Takes the head off the bytes read; NULL: it goes on, or the answer is a refusal.
static const char *read_head(client *c, const char *p, const char *end) {
  while (p < end) {
    if (c->head_len == HEAD_BYTES - 1) return give_up(c), NULL;
    c->head[c->head_len++] = *p++;
    if (c->head_len >= 4 && !memcmp(c->head + c->head_len - 4, "\r\n\r\n", 4)) {
      c->head[c->head_len] = 0;
      if (strncmp(c->head + 8, " 200", 4)) {
        if (!failed) fprintf(stderr, "load: %.*s\n", (int)strcspn(c->head, "\r"), c->head);
        return give_up(c), NULL;
      }
      bool chunked = strcasestr(c->head, "\r\ntransfer-encoding: chunked") != NULL;
      c->closes = !chunked || strcasestr(c->head, "\r\nconnection: close") != NULL;
      c->at = chunked ? IN_SIZE : UNTIL_CLOSE;
      c->chunk_left = 0;
      c->in_extension = false;
      return p;
    }
  }
  return NULL;
}

static void read_size(client *c, char byte) {
  if (byte == '\n') {
    c->in_extension = false;
    c->line_is_empty = true;
    c->at = c->chunk_left ? IN_CHUNK : IN_TRAILER;
  } else if (byte == ';' || byte == '\r') {
    c->in_extension = true;
  } else if (!c->in_extension) {
    c->chunk_left = c->chunk_left * 16 + (size_t)(byte <= '9' ? byte - '0' : (byte | 0x20) - 'a' + 10);
  }
}

static void read_body(client *c, const char *p, const char *end, uint64_t read_ns) {
  while (p < end) {
    switch (c->at) {
      case IN_SIZE:
        read_size(c, *p++);
        break;
      case IN_CHUNK: {
        size_t here = (size_t)(end - p) < c->chunk_left ? (size_t)(end - p) : c->chunk_left;
        find_tokens(c, p, p + here, read_ns);
        p += here;
        c->chunk_left -= here;
        if (!c->chunk_left) c->at = AFTER_CHUNK;
        break;
      }
      case AFTER_CHUNK:
        if (*p++ == '\n') c->at = IN_SIZE;
        break;
      case IN_TRAILER:
        if (*p == '\n' && c->line_is_empty) return stream_over(c);
        if (*p != '\r') c->line_is_empty = *p == '\n';
        p++;
        break;
      default:
        find_tokens(c, p, end, read_ns);
        return;
    }
  }
}

static void on_readable(client *c) {
  static char data[1 << 18];
  ssize_t n = recv(c->fd, data, sizeof data, 0);
  if (n < 0 && errno == EAGAIN) return;
  if (n <= 0) {
    if (c->at == UNTIL_CLOSE) return stream_over(c);
    return give_up(c);
  }
  const char *p = data, *end = data + n;
  uint64_t read_ns = now_ns();
  if (c->at == IN_HEAD && !(p = read_head(c, p, end))) return;
  read_body(c, p, end, read_ns);
}

static void write_request(int port, int headers, char **header) {
  static const char body[] =
      "{\"model\":\"bench\",\"stream\":true,\"stream_options\":{\"include_usage\":true},"
      "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}";
  int n = sprintf(request,
                  "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
                  "Accept: text/event-stream\r\n",
                  port);
  for (int i = 0; i < headers; i++) n += snprintf(request + n, 1024, "%s\r\n", header[i]);
  n += sprintf(request + n, "Content-Length: %zu\r\n\r\n%s", sizeof body - 1, body);
  request_len = (size_t)n;
}

int main(int argc, char **argv) {
  if (argc < 6 || argc > 9) return 2;
  int port = atoi(argv[1]), connections = atoi(argv[2]), begun = 0;
  uint64_t run_ns = (uint64_t)(atof(argv[3]) * 1e9), stagger_ns = (uint64_t)(atof(argv[4]) * 1e6);
  long streams = atol(argv[5]);
  proxy.sin_family = AF_INET;
  proxy.sin_port = htons((uint16_t)port);
  proxy.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  write_request(port, argc - 6, argv + 6);
  poller = epoll_create1(0);
  client *clients = calloc((size_t)connections, sizeof *clients);
  if (!clients) return 1;
  for (int i = 0; i < connections; i++) clients[i].fd = -1;
  uint64_t began_ns = now_ns(), t = began_ns;
  for (; t - began_ns < run_ns && !(streams && finished >= streams); t = now_ns()) {
    while (begun < connections && t - began_ns >= stagger_ns * (uint64_t)begun / (uint64_t)connections)
      ask(&clients[begun++]);
    struct epoll_event events[EVENTS];
    int n = epoll_wait(poller, events, EVENTS, begun < connections ? 1 : 50);
    for (int i = 0; i < n; i++) on_readable(events[i].data.ptr);
  }
  printf("{\"seconds\":%.6f,\"streams\":%ld,\"failed\":%ld,\"tokens\":%ld,"
         "\"first_token_us\":{\"p50\":%.1f,\"p99\":%.1f},\"token_us\":{\"p50\":%.1f,\"p99\":%.1f,\"p999\":%.1f}}\n",
         (double)(t - began_ns) / 1e9, finished, failed, tokens, quantile_us(&first_token, .5), quantile_us(&first_token, .99),
         quantile_us(&token_delay, .5), quantile_us(&token_delay, .99), quantile_us(&token_delay, .999));
  return 0;
}
