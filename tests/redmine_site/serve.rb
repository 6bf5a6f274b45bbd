# Redmine as installed, on loopback, until the process is ended.
require "/usr/share/redmine/config/environment"
require "rack/handler/webrick"

quiet = { Logger: WEBrick::Log.new(File::NULL), AccessLog: [] }
Rack::Handler::WEBrick.run(Rails.application, Host: "127.0.0.1", Port: 0, **quiet) do |server|
  puts "serving on http://127.0.0.1:#{server.listeners[0].addr[1]}"
  $stdout.flush
end
