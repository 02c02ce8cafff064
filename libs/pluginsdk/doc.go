// Package pluginsdk makes a filter for Retinue in a few lines: a type with the methods of the phases that it wants, and a
// call of Serve in main.
//
//	type stamp struct{ header, value string }
//
//	func (s stamp) Wants() pluginsdk.Wants { return pluginsdk.Wants{} }
//
//	func (s stamp) OnRequest(h *pluginsdk.Head) pluginsdk.Answer { return h.Set(s.header, s.value) }
//
// What a filter implements is what it is asked about: RequestFilter, RequestBodyFilter, RequestTrailersFilter, ResponseFilter,
// ResponseBodyFilter, ResponseTrailersFilter, EndFilter; or NetworkFilter. Methods are called one after the other for each
// worker of the proxy and must be quick; with Plugin.Concurrent each call has a goroutine of its own and may wait, up to
// the deadline that the configuration sets.
//
// The process is a hashicorp/go-plugin. It logs to standard error, which restartd sends to a file or to the journal. It ends when
// nobody has held its control connection for a while: it cannot be left behind.
package pluginsdk
