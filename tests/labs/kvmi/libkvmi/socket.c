// SPDX-License-Identifier: GPL-3.0-or-later
// The socket: bytes in time, and a peer that breaks the protocol is cut off.
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "dom.h"

static kvmi_log_cb log_cb;
static void *log_ctx;

void kvmi_set_log_cb(kvmi_log_cb cb, void *ctx)
{
	log_cb = cb;
	log_ctx = ctx;
}

void kvmi_lab_log(kvmi_log_level level, const char *format, ...)
{
	char line[256];
	va_list args;

	if (!log_cb)
		return;
	va_start(args, format);
	vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	log_cb(level, line, log_ctx);
}

int dom_break(struct dom *dom, int error)
{
	if (!dom->gone) {
		dom->gone = true;
		shutdown(dom->fd, SHUT_RDWR);
	}
	errno = error;
	return -1;
}

// Waits for something to read; 0 if there is, -1 with ETIMEDOUT if there is nothing in time.
int dom_wait(struct dom *dom, int ms)
{
	struct pollfd poller = { .fd = dom->fd, .events = POLLIN };
	int ready;

	if (dom->gone) {
		errno = ENOTCONN;
		return -1;
	}
	do {
		ready = poll(&poller, 1, ms);
	} while (ready < 0 && errno == EINTR);
	if (ready < 0)
		return dom_break(dom, errno);
	if (!ready) {
		errno = ETIMEDOUT;
		return -1;
	}
	return 0;
}

int dom_read(struct dom *dom, void *to, size_t size, int ms)
{
	size_t done = 0;

	while (done < size) {
		ssize_t got;

		if (dom_wait(dom, ms))
			return dom_break(dom, errno);
		got = recv(dom->fd, (char *)to + done, size - done, MSG_DONTWAIT);
		if (got > 0)
			done += got;
		else if (!got)
			return dom_break(dom, ENOTCONN);
		else if (errno != EINTR && errno != EAGAIN)
			return dom_break(dom, errno);
	}
	return 0;
}

int dom_send(struct dom *dom, struct iovec *parts, int count)
{
	while (count) {
		struct msghdr message = { .msg_iov = parts, .msg_iovlen = count };
		struct pollfd poller = { .fd = dom->fd, .events = POLLOUT };
		ssize_t sent;

		if (dom->gone) {
			errno = ENOTCONN;
			return -1;
		}
		sent = sendmsg(dom->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (sent < 0 && errno == EAGAIN) {
			int ready = poll(&poller, 1, dom->patience);

			if (!ready)
				return dom_break(dom, ETIMEDOUT);
			if (ready < 0 && errno != EINTR)
				return dom_break(dom, errno);
			continue;
		}
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0)
			return dom_break(dom, errno);
		while (count && (size_t)sent >= parts->iov_len) {
			sent -= parts->iov_len;
			parts++;
			count--;
		}
		if (count) {
			parts->iov_base = (char *)parts->iov_base + sent;
			parts->iov_len -= sent;
		}
	}
	return 0;
}
