// Package plugin calls filters that are other processes, from the worker's own loop.
//
// The main side's Registry follows restartd's table of plugin generations and posts what changed to each worker's Host. A
// Host has one channel, a Unix-socket connection, for each generation: calls are frames staged on it, which leave in one write
// at the end of the turn, and answers come back as frames, of which one read may bring many. A call is a slot; its number holds
// the slot's generation, so that a late answer, an answer to somebody else's call and an invented one are all the same:
// dropped. Deadlines are kept in the order of the calls, one timer for all.
//
// What a plugin sends is foreign bytes. A frame that does not parse ends the channel; an answer that asks for what is not
// allowed (a header that would smuggle, a status that is none) fails its own stream alone. Either way the stream's
// fail mode decides: open goes on as if the filter were not there, closed answers 503.
//
// Nothing here waits, locks or allocates for a call once free lists have grown.
package plugin
